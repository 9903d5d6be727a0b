"""The device: a verified bundle in, text and checked function calls out; no torch.

::

    assistant = runtime.load("bundle/", threads=2)
    result = assistant.call("set the driver side to 22 degrees")
    result.calls  # (Call(name="climate_set_temperature", arguments={"zone": "driver", "celsius": 22}),)

An answer may be given a time, and a later start may find what every prompt begins with::

    assistant.call("open the window", deadline_s=0.5)  # or DeadlineError
    assistant = runtime.load("bundle/", cache="/var/cache/car")

A switchable bundle has a task for each of its adapters::

    assistant.use("navigation")
    assistant.call("take me home")
    assistant.call("a bit warmer", task="climate")

One more adapter, put into the bundle in one step::

    runtime.install("bundle/", "navigation-2/")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.calls import Call
from runtime.errors import (
    BundleError,
    CancelledError,
    CockpitError,
    ConstraintError,
    DataError,
    DeadlineError,
    InferenceError,
    PromptError,
    StoppedError,
    TaskError,
    UsageError,
)

if TYPE_CHECKING:
    from runtime.assistant import Answer, Assistant, CallResult, load
    from runtime.sampling import Sampling
    from runtime.timing import Timing
    from runtime.update import install, recover, uninstall

__all__ = [
    "Answer",
    "Assistant",
    "BundleError",
    "Call",
    "CallResult",
    "CancelledError",
    "CockpitError",
    "ConstraintError",
    "DataError",
    "DeadlineError",
    "InferenceError",
    "PromptError",
    "Sampling",
    "StoppedError",
    "TaskError",
    "Timing",
    "UsageError",
    "install",
    "load",
    "recover",
    "uninstall",
]


def __getattr__(name: str) -> object:
    # Imported when asked for: the manifest, the reports and the errors must open without ONNX Runtime.
    if name == "Sampling":
        from runtime.sampling import Sampling

        return Sampling
    if name == "Timing":
        from runtime.timing import Timing

        return Timing
    if name in ("install", "recover", "uninstall"):
        from runtime import update

        return getattr(update, name)
    if name in __all__:
        from runtime import assistant

        return getattr(assistant, name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
