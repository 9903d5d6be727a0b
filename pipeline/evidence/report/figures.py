"""Figures as text: three significant digits, one unit each, and never a rounding that flatters."""

from __future__ import annotations

import math
from collections.abc import Callable

from runtime.report import Check, Estimate

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """A bare figure: `0.0312`, `3.1×10⁻⁵`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def share(value: float) -> str:
    """A share between 0 and 1 in percent; only a whole share reads 100 %, and only none reads 0 %."""
    if not math.isfinite(value) or value in (0, 1):
        return f"{number(100 * value)} %" if value != 1 else "100 %"
    percent = 100 * value
    if 0.05 <= percent < 99.95:
        return f"{percent:.1f} %"
    return f"{min(max(percent, 0.01), 99.99):.2f} %"


def points(value: float) -> str:
    """A difference of shares, in percentage points with a sign."""
    if not math.isfinite(value):
        return f"{number(value)} pp"
    return f"{100 * value:+.1f} pp".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares, in percentage points with a sign."""
    if not math.isfinite(value):
        return number(value)
    return f"{100 * value:+.1f}".replace("-", "−") if round(100 * value, 1) else "0.0"


def milliseconds(value: float) -> str:
    """A time given in milliseconds."""
    return f"{number(value)} ms" if value < 1000 else f"{number(value / 1000)} s"


def size(value: float) -> str:
    """A number of bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{number(value) if unit != 'B' else round(value)} {unit}"
        value /= 1000
    return f"{number(value)} TB"


def times(value: float) -> str:
    """A ratio: `0.31×`."""
    return f"{value:.2f}×" if math.isfinite(value) and value >= 0.01 else f"{number(value)}×"


def interval(estimate: Estimate, unit: Callable[[float], str]) -> str:
    """`0.29 – 0.33×`: an interval's bounds, the unit once."""
    return between(unit(estimate.low), unit(estimate.high))


def between(low: str, high: str) -> str:
    """Two figures of one unit as a range."""
    unit = high.lstrip("+−0123456789.")
    return f"{low.removesuffix(unit)} – {high}" if unit in (" %", " pp", "×") else f"{low} – {high}"


def of_check(check: Check, value: float) -> str:
    """A check's figure, bound or threshold in the check's own unit."""
    match check.name:
        case "rendering":
            return number(value) if not value.is_integer() else str(int(value))
        case "min_top1" | "min_exact_call":
            return share(value)
        case "max_exact_call_drop":
            return points(value)
        case "max_ttft_ratio" | "max_token_ratio":
            return times(value)
        case _:
            return number(value)


def check_figure(check: Check) -> str:
    """A check's figure, or a dash when nothing was measured."""
    return "—" if check.value is None else of_check(check, check.value)


def check_interval(check: Check) -> str:
    """The interval of a check's figure, empty when it has none."""
    if check.low is None or check.high is None:
        return ""
    return between(of_check(check, check.low), of_check(check, check.high))


def budget_used(check: Check) -> Estimate | None:
    """A check's figure as a share of what its threshold allows: 1 is the threshold itself.

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
    if allowed <= 0 or not all(map(math.isfinite, used)):
        return None
    return Estimate(*(max(0.0, part / allowed) for part in used))
