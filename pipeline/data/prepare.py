"""The data stage: records of three splits, the functions they call, and figures about both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from pipeline.config import Config
from pipeline.data.functions import matching, of_functions
from pipeline.data.generator.generate import generate
from pipeline.data.records import Record, read_records, write_records
from pipeline.data.splits import SPLITS, Split, check_leakage, hold_out, leakage
from runtime.calls import Tool, load_tools, problems
from runtime.errors import DataError


def prepare(config: Config, out: Path) -> dict[str, object]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `tools.json`; return figures about them.

    Records come from the config's files, or from the generator where it names none; `tools.json` has every
    tool, whichever functions are wanted. What leaks between splits is measured in both cases; in generated
    data it is refused.

    Raises:
        ConfigError: a pattern in `data.functions` names no function.
        DataError: the tools or a record are malformed, a call does not satisfy its tool's schema, or
            generated splits leak.
    """
    tools = load_tools(config.data.tools)
    functions = matching(config.data.functions, tools)
    given = config.data.train is not None
    if given:
        splits = _read(config, tools, functions)
    else:
        splits = _generated(config, tools, functions)
        for split in SPLITS[1:]:
            check_leakage(splits["train"], splits[split], split)
    (out / "tools.json").write_bytes(config.data.tools.read_bytes())
    for split, records in splits.items():
        write_records(records, out / f"{split}.jsonl")
    return {
        "source": "files" if given else "generator",
        "functions": len(functions),
        "splits": {split: _counts(records) for split, records in splits.items()},
        "leakage": {split: asdict(leakage(splits["train"], splits[split])) for split in SPLITS[1:]},
    }


def _read(config: Config, tools: Sequence[Tool], functions: Collection[str]) -> dict[Split, list[Record]]:
    """The config's files; where there is none for validation, it is held out of training."""
    data = config.data
    assert data.train is not None
    assert data.test is not None
    train, test = _checked(data.train, tools, functions), _checked(data.test, tools, functions)
    if data.validation is not None:
        validation = _checked(data.validation, tools, functions)
    else:
        train, validation = hold_out(train, data.validation_examples, config.seed)
    return {"train": train, "validation": validation, "test": test}


def _generated(
    config: Config, tools: Sequence[Tool], functions: Collection[str]
) -> dict[Split, list[Record]]:
    data = config.data
    counts: Mapping[Split, int] = {
        "train": data.train_examples,
        "validation": data.validation_examples,
        "test": data.test_examples,
    }
    return {
        split: generate(
            tools,
            split=split,
            examples=counts[split],
            chinese=data.chinese,
            seed=config.seed,
            functions=functions,
        )
        for split in SPLITS
    }


def _checked(path: Path, tools: Sequence[Tool], functions: Collection[str]) -> list[Record]:
    """The wanted records of a file whose calls all satisfy their tools' schemas."""
    records = read_records(path)
    for record in records:
        for call in record.calls:
            if found := problems(call, tools):
                raise DataError(f"{path}: record {record.id}: {'; '.join(found)}")
    wanted = of_functions(records, functions)
    if not any(record.calls for record in wanted) and any(record.calls for record in records):
        raise DataError(
            f"{path} has no record that calls only {', '.join(sorted(functions))}; name other functions"
        )
    return wanted


def _counts(records: Sequence[Record]) -> dict[str, object]:
    domains = Counter(domain(call.name) for record in records for call in record.calls)
    calls = [len(record.calls) for record in records]
    return {
        "records": len(records),
        "languages": dict(sorted(Counter(record.lang for record in records).items())),
        "domains": dict(sorted(domains.items())),
        "functions": len({call.name for record in records for call in record.calls}),
        "families": len({family for r in records if r.family for family in r.family.split("+")}),
        "refusals": calls.count(0),
        "mean_calls": round(mean(calls), 3),
    }


def domain(function: str) -> str:
    """The first word of a function's name: `climate_set_ac` belongs to `climate`."""
    return function.partition("_")[0]
