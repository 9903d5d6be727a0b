"""Which hop of the chain broke, and where in it: a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.report import Check, Culprit, ParityReport, SiteError

HOP_CHECKS = frozenset({"max_hop_error", "max_weights_kl", "max_activations_kl"})
"""Checks of one form against the form before it."""
_OUT_OF_PROPORTION = 4.0
"""How many times the error of the sites before makes a site stand out: honest noise grows by less."""
_NOISE: Mapping[str, float] = {
    "float32": 1e-6,
    "float16": 2e-3,
    "bfloat16": 1e-2,
    "int8": 2e-2,
    "int4": 2e-1,
}
"""Relative error of a site that rounding to a number format alone makes; what is below is no jump."""


def culprit(parity: ParityReport, checks: Sequence[Check]) -> Culprit | None:
    """The first hop whose own check did not pass, and where its error jumps; None when all passed.

    Each hop is measured against the one before, so the first beyond its budget is the guilty one, and what
    comes after it inherits the damage.
    """
    missed: dict[str, list[str]] = {}
    for check in checks:
        if check.name in HOP_CHECKS and check.verdict != "pass":
            missed.setdefault(check.at, []).append(check.name)
    for hop in parity.hops:
        if names := missed.get(hop.step.name):
            # Only the hop that introduces a rounding has its noise: what follows it is the same numbers.
            noise = _NOISE["float32" if hop.step.name in ("onnx", "bundle") else hop.weights]
            site, before = _jump(hop.sites, noise)
            return Culprit(hop.step.name, hop.step.against, tuple(names), site, before)
    return None


def _jump(sites: Sequence[SiteError], noise: float) -> tuple[SiteError | None, float]:
    """The site whose error is most out of proportion to the largest before it, and that error."""
    best: SiteError | None = None
    most, before, found_before = _OUT_OF_PROPORTION, noise, 0.0
    for site in sites:
        if site.error > most * before:
            best, most, found_before = site, site.error / before, before
        before = max(before, site.error)
    return best, found_before
