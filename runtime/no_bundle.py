"""What something without a bundle.json is, in one sentence. Standard library only."""

from __future__ import annotations

from pathlib import Path

from runtime.sites import ADAPTER_SUFFIX

DELTA = "delta.json"
BEFORE = ".before-"
"""Begins the name that an old bundle has while a new one takes its place, where two cannot be exchanged."""
_PEFT = "adapter_config.json"
_ALONE = "an adapter is no model: it says what to add to W0 x, and W0 is in a bundle"


def no_bundle(path: Path) -> str:
    """Why `path` cannot be opened as a bundle, and what to do."""
    whole = path.absolute()
    if not path.exists() and (whole.parent / f"{BEFORE}{whole.name}").is_dir():
        return (
            f"{path} is not there because an update was stopped in the midst; the old bundle is whole: "
            f"`python -m runtime install {path} --recover` puts it back"
        )
    if (path / DELTA).is_file():
        return (
            f"{path} is an update of a bundle, and {_ALONE}; `python -m runtime install BUNDLE {path}` puts "
            "it into the bundle that it was made for"
        )
    if (path / _PEFT).is_file():
        return (
            f"{path} is a PEFT adapter, and {_ALONE}; `cockpit package --adapter-for BUNDLE` makes an update "
            "of it, `cockpit merge` adds it to its base"
        )
    if path.name.endswith(ADAPTER_SUFFIX) and path.is_file():
        return f"{path} is an adapter file, and {_ALONE}; load a switchable bundle, then give this to `add`"
    return f"{path} is not a bundle: it has no bundle.json"
