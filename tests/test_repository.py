"""What is committed is what people wrote: no weights, caches or other bulk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 200_000
"""Bytes; the largest file that somebody wrote is a seventh of that."""
BULK = {".onnx", ".data", ".safetensors", ".gguf", ".npy", ".pt", ".bin"}


def test_no_tracked_file_is_bulk() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    assert len(files) > 250
    assert [file.name for file in files if file.suffix in BULK] == []
    assert [file.name for file in files if file.exists() and file.stat().st_size > LARGEST] == []
