"""Imports go pipeline → export → runtime → nothing of ours, and a device loads nothing of the build host."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime", "export", "pipeline")
MAY_IMPORT = {
    "runtime": {"runtime"},
    "export": {"runtime", "export"},
    "pipeline": {"runtime", "export", "pipeline"},
}
DEVICE = {"numpy", "onnxruntime", "tokenizers", "jinja2", "llguidance"}
STANDARD_ONLY = (
    "errors.py", "report.py", "files.py", "manifest.py", "no_bundle.py", "delta.py", "sites.py", "strict.py",
    "schema.py", "calls.py", "grammar.py",
)  # fmt: skip
WITHOUT_TORCH = (
    "pipeline/config.py",
    "pipeline/config_file.py",
    "pipeline/evidence/gate.py",
    "pipeline/evidence/thresholds.py",
    "pipeline/evidence/culprit.py",
    "pipeline/evidence/baseline.py",
)
BUILD_HOST = {
    "torch", "transformers", "peft", "accelerate", "onnx", "onnx_ir", "pydantic", "safetensors",
    "huggingface_hub", "typer", "rich", "gguf", "pipeline", "export",
}  # fmt: skip


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_every_file_is_scanned() -> None:
    counts = {package: len(sources(package)) for package in PACKAGES}
    assert counts["runtime"] >= 15
    assert counts["export"] >= 8
    assert counts["pipeline"] >= 15


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(against)
        for path in sources(package)
        if (against := (tops(path) & set(PACKAGES)) - MAY_IMPORT[package])
    }
    assert wrong == {}


def test_the_device_needs_only_what_it_installs() -> None:
    allowed = set(sys.stdlib_module_names) | DEVICE | {"runtime"}
    wrong = {path.name: sorted(tops(path) - allowed) for path in sources("runtime") if tops(path) - allowed}
    assert wrong == {}


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_the_seam_needs_only_the_standard_library(name: str) -> None:
    path = ROOT / "runtime" / name
    assert tops(path) - set(sys.stdlib_module_names) <= {"runtime"}
    ours = {name for name in imported(path) if name.startswith("runtime.")}
    assert {f"{name.removeprefix('runtime.')}.py" for name in ours} <= set(STANDARD_ONLY)


def test_the_scan_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        "def f():\n    from pipeline.config import Config\n    import torch.nn\n", encoding="utf-8"
    )
    assert tops(path) == {"pipeline", "torch"}


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generating_a_token_loads_nothing_of_the_build_host(tiny_bundle: Path) -> None:
    code = (
        "import json, sys, runtime\n"
        "assistant = runtime.load(sys.argv[1], threads=1)\n"
        "next(iter(assistant.generate(assistant.messages('x'), max_new_tokens=8)))\n"
        "assistant.answer('x', max_new_tokens=8)\n"
        "assistant.decoder.score([1, 2, 3])\n"
        "import runtime.bench\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(run(code, str(tiny_bundle))))
    assert loaded >= DEVICE
    assert loaded & BUILD_HOST == set()


def test_reading_a_manifest_loads_no_third_party_package(tiny_bundle: Path) -> None:
    code = (
        "import json, sys, runtime.report, runtime.manifest, pathlib\n"
        "runtime.manifest.verify(pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(run(code, str(tiny_bundle))))
    assert loaded & (DEVICE | BUILD_HOST) == set()


def test_an_install_needs_numpy_alone() -> None:
    code = (
        "import json, sys, runtime; runtime.install\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert set(json.loads(run(code))) & (DEVICE | BUILD_HOST) == {"numpy"}


@pytest.mark.parametrize("path", WITHOUT_TORCH)
def test_judging_and_configuring_need_no_torch(path: str) -> None:
    module = path.removesuffix(".py").replace("/", ".")
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert run(code).strip() == "False"
