"""How the matrices of an int4 build were rounded: the frontier, the choice, and why each has its form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Objective
from pipeline.evidence.report.charts import Chart
from pipeline.evidence.report.figures import number, share, size
from pipeline.evidence.report.frontier import frontier
from pipeline.evidence.report.words import Language, say
from pipeline.rounding.assignment import Form
from pipeline.rounding.record import Chosen, Figures, Norms, Rounding

_ROWS = 12
"""Of the frontier's table, beside the choice itself."""
_MB = 1e6


@dataclass(frozen=True)
class Step:
    """From a matrix's form to another.

    Attributes:
        form: the other.
        nbytes: that it saves or takes.
        kl: nats that it adds or takes off.
        price: nats per MB.
    """

    form: Form
    nbytes: int
    kl: float
    price: float


@dataclass(frozen=True)
class MatrixLine:
    """One matrix: its form, and the steps that were not taken, as texts; empty where there is none."""

    name: str
    form: str
    size: str
    kl: str
    smaller: str
    smaller_price: str
    larger: str
    larger_price: str
    error: str
    update_error: str


@dataclass(frozen=True)
class FormLine:
    """All matrices of one form."""

    form: str
    matrices: int
    size: str
    kl: str


@dataclass(frozen=True)
class FrontierLine:
    """One choice for all matrices."""

    size: str
    kl: str
    chosen: bool


@dataclass(frozen=True)
class Bits:
    """The section in one language.

    Attributes:
        note: what was measured.
        choice: what was asked, and what was found.
        reasons: the cheapest step that was not taken, each way; and what became of the adapter's update.
        chart: the frontier.
        forms: how often each was chosen.
        shown: which part of the frontier its table shows.
        frontier: rows of that table.
        matrices: every one.
    """

    note: str
    choice: str
    reasons: tuple[str, ...]
    chart: Chart
    forms: tuple[FormLine, ...]
    shown: str
    frontier: tuple[FrontierLine, ...]
    matrices: tuple[MatrixLine, ...]


def bits(rounding: Rounding, language: Language) -> Bits:
    """What a rounding found."""
    found = rounding.figures
    title, note = say(language, "chart.frontier"), say(language, "chart.frontier.note")
    drawn = frontier(found.frontier, (found.matrix_bytes, found.expected_kl), title, note)
    rows = _frontier(found)
    return Bits(
        note=say(language, "rounding.note", found.conversations, found.positions),
        choice=_choice(rounding.objective, found, language),
        reasons=(*_reasons(found.forms, language), *_update(found.apart, language)),
        chart=Chart(title, note, drawn),
        forms=tuple(_forms(found.forms, language)),
        shown=say(language, "rounding.shown", len(rows), len(found.frontier)),
        frontier=rows,
        matrices=tuple(
            _matrix(name, found.forms[name], found.apart.get(name), language)
            for name in sorted(found.forms, key=_order)
        ),
    )


def smaller(chosen: Chosen) -> Step | None:
    """The step to fewer bytes that adds the least divergence for those it saves."""
    steps = [
        Step(form, saved, form.kl - chosen.kl, (form.kl - chosen.kl) / saved * _MB)
        for form in chosen.tried
        if (saved := chosen.nbytes - form.nbytes) > 0
    ]
    return min(steps, key=lambda step: step.price, default=None)


def larger(chosen: Chosen) -> Step | None:
    """The step to more bytes that takes off the most divergence for them; None where none takes off any."""
    steps = [
        Step(form, more, chosen.kl - form.kl, (chosen.kl - form.kl) / more * _MB)
        for form in chosen.tried
        if (more := form.nbytes - chosen.nbytes) > 0 and form.kl < chosen.kl
    ]
    return max(steps, key=lambda step: step.price, default=None)


def _choice(objective: Objective, found: Figures, language: Language) -> str:
    if objective.budget_kl is not None:
        asked = say(language, "rounding.budget_kl", number(objective.budget_kl))
    elif objective.budget_bytes is not None:
        asked = say(language, "rounding.budget_bytes", size(objective.budget_bytes))
    else:
        asked = say(language, "rounding.plain")
    return say(language, "rounding.choice", asked, size(found.matrix_bytes), number(found.expected_kl))


def _reasons(forms: Mapping[str, Chosen], language: Language) -> list[str]:
    down = [(step.price, name, step) for name, each in forms.items() if (step := smaller(each))]
    up = [(step.price, name, step) for name, each in forms.items() if (step := larger(each))]
    ends = [("rounding.down", min(down, default=None)), ("rounding.up", max(up, default=None))]
    return [
        say(
            language,
            key,
            _shortly(name),
            _form(language, step.form.bits, step.form.block_size),
            size(step.nbytes),
            number(step.kl),
            number(price),
        )
        for key, end in ends
        if end is not None
        for price, name, step in (end,)
    ]


def _update(apart: Mapping[str, Norms], language: Language) -> list[str]:
    """The error on all weights that the adapter has changed, and apart from it that on its update."""
    if not apart:
        return []

    def over(part: Callable[[Norms], float], whole: Callable[[Norms], float]) -> str:
        norms = apart.values()
        return share(math.hypot(*map(part, norms)) / math.hypot(*map(whole, norms)))

    return [
        say(
            language,
            "rounding.update",
            over(lambda each: each.error, lambda each: each.weight),
            over(lambda each: each.update_error, lambda each: each.update),
            over(lambda each: each.update, lambda each: each.weight),
        )
    ]


def _forms(forms: Mapping[str, Chosen], language: Language) -> list[FormLine]:
    lines = []
    for width, block in sorted({(each.bits, each.block_size) for each in forms.values()}):
        alike = [each for each in forms.values() if (each.bits, each.block_size) == (width, block)]
        total, kl = sum(each.nbytes for each in alike), sum(each.kl for each in alike)
        lines.append(FormLine(_form(language, width, block), len(alike), size(total), number(kl)))
    return lines


def _frontier(found: Figures) -> tuple[FrontierLine, ...]:
    """The choice, and others at even distances in bytes."""
    first, last = found.frontier[0][0], found.frontier[-1][0]
    wanted = [first + (last - first) * at / (_ROWS - 1) for at in range(_ROWS)]
    taken = (float(found.matrix_bytes), found.expected_kl)
    near = {_nearest(found.frontier, at) for at in wanted}
    return tuple(
        FrontierLine(size(nbytes), number(kl), (nbytes, kl) == taken) for nbytes, kl in sorted({*near, taken})
    )


def _nearest(points: Sequence[tuple[float, ...]], nbytes: float) -> tuple[float, ...]:
    return min(points, key=lambda point: abs(point[0] - nbytes))


def _matrix(name: str, chosen: Chosen, apart: Norms | None, language: Language) -> MatrixLine:
    down, up = smaller(chosen), larger(chosen)
    return MatrixLine(
        name=_shortly(name),
        form=_form(language, chosen.bits, chosen.block_size),
        size=size(chosen.nbytes),
        kl=number(chosen.kl),
        smaller=_step(down, "−", "+", language),
        smaller_price=number(down.price) if down else "",
        larger=_step(up, "+", "−", language),
        larger_price=number(up.price) if up else "",
        error=share(apart.error / apart.weight) if apart else "",
        update_error=share(apart.update_error / apart.update) if apart else "",
    )


def _step(step: Step | None, nbytes: str, kl: str, language: Language) -> str:
    if step is None:
        return ""
    form = _form(language, step.form.bits, step.form.block_size)
    return say(language, "rounding.step", form, f"{nbytes}{size(step.nbytes)}", f"{kl}{number(step.kl)}")


def _form(language: Language, width: int, block: int) -> str:
    return say(language, "rounding.form", width, block)


def _shortly(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight")


def _order(name: str) -> list[tuple[int, str]]:
    """Layers by number, behind the ends' names as they come."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
