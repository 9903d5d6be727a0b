"""The code digest follows imports: what shapes an output is in it, and what does not is not."""

import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.provenance import code_digest, directory_digest, json_digest

ROOT = Path(__file__).parent.parent


def digest_in(copy: Path, module: str) -> str:
    script = "import sys; from pipeline.provenance import code_digest; print(code_digest(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, module], cwd=copy, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_stage_depends_on_what_it_imports_and_on_nothing_else(tmp_path: Path) -> None:
    for package in ("pipeline", "export", "runtime"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    modules = ("pipeline.merge", "pipeline.train", "export.checkpoint", "pipeline.data.prepare")
    before = {module: digest_in(tmp_path, module) for module in modules}

    def changed(file: str) -> set[str]:
        path = tmp_path / file
        content = path.read_text(encoding="utf-8")
        path.write_text(content + "\n# changed\n", encoding="utf-8")
        after = {module: digest_in(tmp_path, module) for module in modules}
        path.write_text(content, encoding="utf-8")
        return {module for module in modules if after[module] != before[module]}

    assert changed("pipeline/evidence/report/html.py") == set()
    assert changed("pipeline/data/packing.py") == {"pipeline.train"}
    assert changed("export/quantize.py") == {"export.checkpoint"}
    assert changed("export/weights.py") == {"pipeline.merge", "pipeline.train", "export.checkpoint"}
    assert changed("pipeline/data/generator/chinese.py") == {"pipeline.data.prepare"}


def test_digests_repeat_and_differ() -> None:
    assert code_digest("pipeline.merge") == code_digest("pipeline.merge") != code_digest("pipeline.train")
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1}) != json_digest({"a": 2, "b": 1})


def test_a_directory_is_its_paths_and_contents(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_text("content")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert directory_digest(tmp_path / "one") == directory_digest(tmp_path / "two")
    (tmp_path / "two" / "file").rename(tmp_path / "two" / "other")
    assert directory_digest(tmp_path / "one") != directory_digest(tmp_path / "two")
