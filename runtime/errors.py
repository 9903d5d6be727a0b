"""Every exception this project raises on purpose.

The exit code is an attribute of the class, so a command line maps an error to its code without a table::

    CockpitError                  1   an error with one clear sentence for a person
    ├── UsageError                2   the caller asked for something that cannot be
    │   ├── ConfigError           2   a config file or override is wrong
    │   ├── DataError             2   a record, tool schema or conversation is malformed
    │   ├── PromptError           2   a prompt is empty or does not fit the context
    │   ├── TaskError             2   a task is not known, or cannot be added or removed now
    │   └── ConstraintError       2   no output can satisfy the requested grammar
    ├── StageError                3   a build stage could not finish
    │   ├── CheckpointError       3   a base checkpoint cannot be fetched, read or trusted
    │   ├── AdapterError          3   an adapter is not understood or belongs to another base
    │   ├── TrainingError         3   training cannot go on (a non-finite loss, W0 changed)
    │   └── ExportError           3   a checkpoint cannot be expressed as a graph
    ├── StoppedError              1   an answer was stopped before its end
    │   ├── DeadlineError         1   it took longer than it may
    │   └── CancelledError        1   somebody said so
    ├── GateError                 4   evidence did not meet a threshold
    └── BundleError               5   a bundle is missing, damaged, altered or unsupported
        └── InferenceError        5   a verified bundle produced non-finite numbers

`InferenceError` exits 5 because a bundle whose numbers are not finite must not be used, which is
what a refused bundle means to whoever reads the exit code.
"""

from collections.abc import Sequence


class CockpitError(Exception):
    """An expected failure: `str(error)` is one sentence saying what is wrong and what to do."""

    exit_code = 1


class UsageError(CockpitError):
    """The caller asked for something that cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file or an override is wrong."""


class DataError(UsageError):
    """A record, a tool schema or a conversation is malformed."""


class PromptError(UsageError):
    """A prompt is empty or longer than the context."""


class TaskError(UsageError):
    """A task is not known, known already, or in use."""


class ConstraintError(UsageError):
    """The grammar allows no output."""


class StageError(CockpitError):
    """A build stage could not finish."""

    exit_code = 3


class CheckpointError(StageError):
    """A base checkpoint cannot be fetched, read or trusted."""


class AdapterError(StageError):
    """An adapter is not understood, damaged, or made for another base."""


class TrainingError(StageError):
    """Training cannot go on or broke its promises."""


class ExportError(StageError):
    """A checkpoint cannot be expressed as a graph."""


class StoppedError(CockpitError):
    """An answer was stopped before its end; whoever was asked answers the next one."""


class DeadlineError(StoppedError):
    """An answer took longer than it may."""


class CancelledError(StoppedError):
    """An answer was told to stop."""


class GateError(CockpitError):
    """Evidence did not meet a threshold."""

    exit_code = 4


class BundleError(CockpitError):
    """A bundle is missing, damaged, altered or of an unsupported format.

    Attributes:
        problems: every difference found, one sentence each; the message shows them all.
    """

    exit_code = 5

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join((message, *(f"  - {problem}" for problem in self.problems))))


class InferenceError(BundleError):
    """The model produced NaN or infinity."""
