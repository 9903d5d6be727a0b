"""Which form each matrix takes, so that a budget buys the most.

Errors of different matrices hardly meet: to second order, the divergence of a model is the sum of what each
rounded matrix costs alone. The best choice within a budget then lies on the lower convex hull of each
matrix's forms, and is found by buying the steps along the hulls that save the most divergence per byte. An
embedding is too large a step for that, so of the two largest matrices every form is tried with all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from runtime.errors import StageError


@dataclass(frozen=True)
class Form:
    """One way to store a matrix.

    Attributes:
        bits: of a weight, 4 or 8.
        block_size: weights that share one scale.
        nbytes: of integers, scales in float32 and zero points, which a token reads; a file may have the
            scales in half of that.
        kl: mean divergence, in nats per position, that this matrix alone adds.
    """

    bits: int
    block_size: int
    nbytes: int
    kl: float


@dataclass(frozen=True)
class Point:
    """One choice for all matrices.

    Attributes:
        nbytes: of all matrices.
        kl: the sum of theirs.
        forms: matrix → its form.
    """

    nbytes: int
    kl: float
    forms: Mapping[str, Form]


def frontier(forms: Mapping[str, Sequence[Form]]) -> list[Point]:
    """Choices from the smallest to the closest, each with the least divergence for its bytes.

    Args:
        forms: matrix → the ways to store it; at least one.
    """
    by_size = sorted(forms, key=lambda name: (-min(form.nbytes for form in forms[name]), name))
    largest, others = by_size[:2], by_size[2:]
    hulls = {name: _hull(forms[name]) for name in others}
    found: list[Point] = []
    for picked in product(*(forms[name] for name in largest)):
        found += _bought(dict(zip(largest, picked, strict=True)), hulls)
    points: list[Point] = []
    for point in sorted(found, key=lambda point: (point.nbytes, point.kl)):
        if not points or point.kl < points[-1].kl:
            points.append(point)
    return points


def _bought(given: Mapping[str, Form], hulls: Mapping[str, Sequence[Form]]) -> Iterator[Point]:
    """Beside given forms the smallest of every other matrix, then step by step what saves most per byte."""
    chosen = {**given, **{name: hull[0] for name, hull in hulls.items()}}
    yield _point(chosen)
    steps = sorted(
        ((after.kl - before.kl) / (after.nbytes - before.nbytes), name, number)
        for name, hull in hulls.items()
        for number, (before, after) in enumerate(pairwise(hull), start=1)
    )
    for _, name, number in steps:
        chosen = {**chosen, name: hulls[name][number]}
        yield _point(chosen)


def within_bytes(points: Sequence[Point], budget: int) -> Point:
    """The closest choice of at most `budget` bytes.

    Raises:
        StageError: even the smallest is larger.
    """
    if points[0].nbytes > budget:
        raise StageError(
            f"no choice of forms has {budget / 1e6:.1f} MB of matrices or less: the smallest has "
            f"{points[0].nbytes / 1e6:.1f} MB at a divergence of {points[0].kl:.2g}; raise budget_bytes"
        )
    return [point for point in points if point.nbytes <= budget][-1]


def within_kl(points: Sequence[Point], budget: float) -> Point:
    """The smallest choice with a divergence of at most `budget`.

    Raises:
        StageError: even the closest diverges more.
    """
    for point in points:
        if point.kl <= budget:
            return point
    last = points[-1]
    raise StageError(
        f"no choice of forms diverges by {budget:.2g} or less: the closest diverges by {last.kl:.2g} at "
        f"{last.nbytes / 1e6:.1f} MB of matrices; raise budget_kl"
    )


def _hull(forms: Sequence[Form]) -> list[Form]:
    """The forms from smallest to largest that no mixture of others beats."""
    hull: list[Form] = []
    for form in _improving(sorted(forms, key=lambda form: (form.nbytes, form.kl, form.block_size))):
        while len(hull) > 1 and _above(hull[-2], hull[-1], form):
            hull.pop()
        hull.append(form)
    return hull


def _improving(forms: Sequence[Form]) -> Iterator[Form]:
    """Those that diverge less than every smaller one."""
    least = float("inf")
    for form in forms:
        if form.kl < least:
            least = form.kl
            yield form


def _above(left: Form, middle: Form, right: Form) -> bool:
    """Whether the middle one lies on or above the line from left to right."""
    rise = (middle.kl - left.kl) * (right.nbytes - left.nbytes)
    return rise >= (right.kl - left.kl) * (middle.nbytes - left.nbytes)


def _point(chosen: Mapping[str, Form]) -> Point:
    forms = chosen.values()
    return Point(sum(form.nbytes for form in forms), sum(form.kl for form in forms), chosen)
