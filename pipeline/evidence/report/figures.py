"""Figures as text: three significant digits, one unit each, and never a rounding that flatters."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from runtime.report import Check, Estimate

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Budget:
    """How much of what a threshold allows a figure and its interval use: 1 is the threshold itself."""

    value: float
    low: float
    high: float


def number(value: float) -> str:
    """A bare figure: `0.0312`, `3.1×10⁻⁵`."""
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e9:
        text = f"{value:,.0f}"
    elif 1e-3 <= abs(value) < 1e4:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def power(value: float) -> str:
    """A power of ten as an axis shows it: `10⁻⁶`, `0.01`, `1`, `100`."""
    exponent = round(math.log10(value))
    return f"{value:g}" if exponent >= -2 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def printable(text: str) -> str:
    """A text from elsewhere without what steers a terminal or is not allowed in XML."""
    return "".join("\ufffd" if _is_control(letter) else letter for letter in text)


def _is_control(letter: str) -> bool:
    if letter in "\t\n":
        return False
    return unicodedata.category(letter) in ("Cc", "Cs") or letter in "\ufffe\uffff"


def plain(text: str) -> str:
    """A figure that was chosen, not measured: without zeros at its end."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda found: found[1].removesuffix("."), text)


def share(value: float) -> str:
    """A share between 0 and 1 in percent; only a whole share reads 100 %, and only none reads 0 %."""
    percent = 100 * value
    if percent in (0, 100):
        return f"{percent:.0f}\u00a0%"
    if 0.05 <= percent < 99.95:
        return f"{percent:.1f}\u00a0%"
    return f"{min(max(percent, 0.01), 99.99):.2f}\u00a0%"


def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value:.1f}\u00a0pp".replace("-", "−")


def milliseconds(value: float) -> str:
    """A time given in milliseconds."""
    return f"{number(value)}\u00a0ms" if value < 1000 else f"{number(value / 1000)}\u00a0s"


def size(value: float) -> str:
    """A number of bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{number(value) if unit != 'B' else round(value)}\u00a0{unit}"
        value /= 1000
    return f"{number(value)}\u00a0TB"


def times(value: float) -> str:
    """A ratio: `0.31×`."""
    return f"{value:.2f}×" if value >= 0.01 else f"{number(value)}×"


def interval(estimate: Estimate, unit: Callable[[float], str]) -> str:
    """`0.29 – 0.33×`: an interval's bounds, the unit once."""
    return between(unit(estimate.low), unit(estimate.high))


def between(low: str, high: str) -> str:
    """Two figures of one unit as a range."""
    unit = high.lstrip("+−0123456789.")
    return f"{low.removesuffix(unit)} – {high}" if unit in ("\u00a0%", "\u00a0pp", "×") else f"{low} – {high}"


def of_check(check: Check, value: float) -> str:
    """A check's figure, bound or threshold in the check's own unit."""
    match check.name:
        case "rendering" | "switching":
            return str(int(value))
        case "min_top1" | "min_identical_answers" | "min_exact_call" | "min_valid":
            return share(value)
        case "max_exact_call_drop" | "max_exact_call_loss":
            return points(value)
        case "max_load_ms":
            return milliseconds(value)
        case ratio if ratio.endswith(("_ratio", "_growth")):
            return times(value)
        case _:
            return number(value)


def check_threshold(check: Check) -> str:
    """A check's threshold."""
    return plain(of_check(check, check.threshold))


def check_figure(check: Check) -> str:
    """A check's figure, or a dash when nothing was measured; `> 1.00×` is a threshold barely missed."""
    if check.value is None:
        return "—"
    text = of_check(check, check.value)
    if text != of_check(check, check.threshold) or check.value == check.threshold:
        return text
    return f"{'>' if check.value > check.threshold else '<'} {text}"


def check_interval(check: Check) -> str:
    """The interval of a check's figure, empty when it has none."""
    if check.low is None or check.high is None:
        return ""
    return between(of_check(check, check.low), of_check(check, check.high))


def budget_used(check: Check) -> Budget | None:
    """A check's figure as a share of what its threshold allows.

    None when there is no figure, or when the threshold allows nothing at all.
    """
    if check.value is None:
        return None
    low = check.value if check.low is None else check.low
    high = check.value if check.high is None else check.high
    if check.direction == "at most":
        allowed, used = check.threshold, (check.value, low, high)
    else:
        allowed, used = 1 - check.threshold, (1 - check.value, 1 - high, 1 - low)
    if allowed <= 0:
        return None
    return Budget(*(max(0.0, part / allowed) for part in used))
