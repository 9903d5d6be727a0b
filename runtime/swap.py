"""One directory takes the place of another, so that a kill at any moment leaves one of the two, whole.

Linux exchanges two names in one step (renameat2, RENAME_EXCHANGE). Where the system or the file system
cannot, there are two renames; a kill between them leaves the old directory whole under another name, and
`recover` puts it back. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import BundleError
from runtime.no_bundle import BEFORE

_FRESH = ".install-"
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)  # some sandboxes say the last


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory's parent against other installs; what a killed one left is put right first.

    Raises:
        BundleError: another install is at work, or the parent cannot be opened.
    """
    try:
        parent = os.open(directory.parent, os.O_RDONLY)
    except OSError as error:
        raise BundleError(f"cannot open {directory.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError(
                f"another install is at work in {directory.parent}; let it end, then try again"
            ) from error
        except OSError as error:
            raise BundleError(f"cannot lock {directory.parent}: {error.strerror}") from error
        recover(directory)
        yield
    finally:
        os.close(parent)


def recover(directory: Path) -> None:
    """Put the old directory back if a kill came between two renames, and remove what is left over."""
    before, fresh = directory.with_name(f"{BEFORE}{directory.name}"), _fresh(directory)
    if not directory.exists() and before.is_dir():
        before.rename(directory)
    if directory.exists():
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `directory` when the context ends without an error.

    Raises:
        OSError: the disk refuses; `directory` is as it was.
    """
    fresh = _fresh(directory)
    fresh.mkdir()
    try:
        yield fresh
        _flush(fresh)
        old = fresh if _exchange(fresh, directory) else _two_renames(fresh, directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fresh(directory: Path) -> Path:
    return directory.with_name(f"{_FRESH}{directory.name}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _two_renames(fresh: Path, directory: Path) -> Path:
    """Where two names cannot be exchanged; the name that the old directory has then."""
    before = directory.with_name(f"{BEFORE}{directory.name}")
    directory.rename(before)
    try:
        fresh.rename(directory)
    except BaseException:
        before.rename(directory)
        raise
    return before


def _flush(directory: Path) -> None:
    """Put everything below a directory on disk before it gets its name."""
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    with suppress(OSError):  # not every file system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
