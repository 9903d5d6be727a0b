"""A directory where the runtime keeps what it can make again, and how it knows its files the next time.

What is kept is known by its identity: where it lies, its size, and when it was last changed. The time of the
last change is set by the kernel at every write and cannot be chosen, so a file whose identity is the same
holds the same bytes, unless somebody wrote to the disk below the file system or turned back the clock, and
either needs the rights of root. That holds only where the directory belongs to whoever runs the process, and
not on Windows, where that time is the time of creation.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UsageError

SETTLED_NS = 2_000_000_000
"""A file that was changed later than this before it was looked at may change again within one tick of the
clock that stamps it."""


@dataclass(frozen=True)
class Identity:
    """Of one file. Times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def identity(path: Path) -> Identity:
    """What tells this file, with this content, from any other.

    Raises:
        OSError: there is no such file.
    """
    status = path.lstat()
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def own_directory(path: Path | str) -> Path:
    """The directory `path`, made if it is missing.

    Raises:
        UsageError: it cannot be made, it is another user's, others may write to it, or the system does not
            say when a file was last changed.
    """
    if os.name == "nt":
        raise UsageError("a cache cannot be used on Windows, which does not say when a file was last changed")
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be used as a cache ({error.strerror}); name a directory of yours"
        ) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(
            f"{directory} cannot be used as a cache: only you may be able to write to it (chmod go-w)"
        )
    return directory


def read_kept(path: Path) -> object:
    """The JSON value in a file; None where there is none that can be read."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


def keep(path: Path, value: object) -> None:
    """Write a JSON value into a file, whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Return when the file's bytes are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def discard(directory: Path) -> None:
    """Remove a directory; what somebody else removes meanwhile, or holds open, is left."""
    shutil.rmtree(directory, ignore_errors=True)
