"""Which of the tools' functions a config means by names and patterns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase

from pipeline.config import Config
from pipeline.data.records import Record
from runtime.calls import Tool, load_tools
from runtime.errors import ConfigError


def matching(patterns: Sequence[str], tools: Sequence[Tool]) -> frozenset[str]:
    """The functions that any of the patterns names; without patterns, all of them.

    Raises:
        ConfigError: a pattern names none.
    """
    names = [tool.name for tool in tools]
    if problems := list(_unmatched(patterns, names)):
        raise ConfigError("; ".join(problems))
    if not patterns:
        return frozenset(names)
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def refuse_unmatched(config: Config) -> None:
    """Refuse patterns of the config's tasks that name no function, all of them at once.

    Raises:
        ConfigError: there are some.
        DataError: the tools are malformed.
    """
    names = [tool.name for tool in load_tools(config.data.tools)]
    problems = [
        f'task "{task.name}": {problem}'
        for task in config.tasks
        for problem in _unmatched(task.functions, names)
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def of_functions(records: Sequence[Record], functions: Collection[str]) -> list[Record]:
    """Records that call nothing but these functions; what calls none belongs everywhere."""
    return [record for record in records if all(call.name in functions for call in record.calls)]


def _unmatched(patterns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.rstrip("*"), _words(names), n=3)
            listed = " or ".join(f'"{name}"' for name in near) or ", ".join(names)
            yield f'"{pattern}" matches no function of the tools; ' + (
                f"did you mean {listed}?" if near else f"they are {listed}"
            )


def _words(names: Sequence[str]) -> list[str]:
    """The names, and a pattern for each of their domains."""
    return [*names, *dict.fromkeys(f"{name.partition('_')[0]}_*" for name in names)]
