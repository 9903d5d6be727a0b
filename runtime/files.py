"""A directory of plain files, and the digests that they must have. Standard library only."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BundleError

BUILD_RECORD = "stage.json"
"""What a build leaves in a directory about itself; no part of what is in it, and no reader opens it."""
MOST_BYTES = 4 << 20
"""A larger list of files is refused before it is read."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """What a file's content must be. `size` in bytes."""

    sha256: str
    size: int


def read_list(path: Path) -> str:
    """The text of the file that lists the others; a link is not followed.

    Raises:
        FileNotFoundError: there is none.
        BundleError: it is no plain file, too large, or cannot be read.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a plain file; install the bundle again")
        if status.st_size > MOST_BYTES:
            raise BundleError(f"{path} is larger than {MOST_BYTES} bytes; it is not a manifest")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path}: {error}") from error


def present(directory: Path, own: str) -> tuple[dict[str, int], list[str]]:
    """Every plain file below a directory, with its size in bytes; and what else is there.

    Args:
        directory: its links are not followed.
        own: the file that lists the others; it is left out, and so is a build's record.
    """
    sizes: dict[str, int] = {}
    found: list[str] = []
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found.append(f"{name} is a link; a bundle holds plain files only")
        elif not stat.S_ISREG(status.st_mode):
            found.append(f"{name} is not a plain file")
        elif name not in (own, BUILD_RECORD):
            sizes[name] = status.st_size
    return sizes, sorted(found)


def differences(directory: Path, files: Mapping[str, File], own: str) -> list[str]:
    """How a directory differs from its list: what is missing, added, changed, or no plain file."""
    sizes, found = present(directory, own)
    found += [f"{name} is missing" for name in sorted(set(files) - set(sizes))]
    found += [f"{name} is not listed in {own}" for name in sorted(set(sizes) - set(files))]
    # The largest first, so that two threads end together; hashing and reading release the interpreter.
    names = sorted(set(sizes) & set(files), key=lambda name: -sizes[name])
    with ThreadPoolExecutor(max_workers=2) as pool:
        checks = pool.map(lambda name: _difference(directory, name, sizes[name], files[name]), names)
        return found + sorted(check for check in checks if check is not None)


def list_problems(files: Mapping[str, File], own: str) -> Iterator[str]:
    """What is wrong with a list of files as such."""
    for name, file in files.items():
        if not _inside(name) or name in (own, BUILD_RECORD):
            yield f"files: {name!r:.80} is not a plain path inside the bundle"
        if not is_digest(file.sha256) or file.size < 0:
            yield f"files: {name:.80} needs a sha256 of 64 hex digits and a size"


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text is a sha256 as it is written here: 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _difference(directory: Path, name: str, size: int, expected: File) -> str | None:
    if size != expected.size:
        return f"{name} has {size} bytes instead of {expected.size}"
    try:
        return None if digest(directory / name) == expected.sha256 else f"{name} was changed"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _inside(name: str) -> bool:
    """Whether a path is relative, normal and portable."""
    parts = name.split("/")
    return not (any(part in ("", ".", "..") for part in parts) or any(c in "\\:" or c < " " for c in name))
