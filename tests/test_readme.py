"""What the README and the help say exists, exists."""

import re
from pathlib import Path

from typer.main import get_command

from pipeline.cli import app
from pipeline.config import Gate
from pipeline.evidence.thresholds import DEFAULTS

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


def test_every_linked_file_exists() -> None:
    pages = [
        *(ROOT / name for name in READMES),
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(pages) >= 10
    assert len(links) >= 6
    assert [f"{page.name} → {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_every_make_target_and_config_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        targets = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
        assert {"demo", "test"} <= targets
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        configs = set(re.findall(r"configs/[\w.-]+\.toml", text))
        assert len(configs) >= 3
        assert all((ROOT / config).exists() for config in configs)


def test_every_verb_is_documented() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert [verb for verb in verbs if f"cockpit {verb}" not in text] == []


def test_every_module_of_the_file_map_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\b(\w+\.py)\b", text[text.index("## Where things are") :]))
    present = {
        path.name for package in ("pipeline", "export", "runtime") for path in (ROOT / package).rglob("*.py")
    }
    assert len(names) >= 20
    assert names <= present


def test_the_gate_page_states_every_default() -> None:
    rows = {
        cells[1].strip("` "): cells[3:7]
        for line in (ROOT / "docs" / "gates.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.split("|")]) > 7
    }
    assert set(rows) == set(Gate.model_fields)
    for name, cells in rows.items():
        stated = [_number(cell) for cell in cells]
        assert stated == [DEFAULTS[precision].get(name) for precision in ("fp32", "fp16", "int8", "int4")]


def _number(cell: str) -> float | None:
    if cell == "–":
        return None
    value, _, unit = cell.partition(" ")
    return round(float(value) / (100 if unit in ("%", "pp") else 1), 12)
