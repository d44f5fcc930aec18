"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends without error.

    Several processes may write the same file at once: the last to end wins. What a killed process leaves
    there, the next one deletes.

    Raises:
        OSError: the file cannot be written, by its name; the old one is as it was.
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # who may write to /dev would replace a device
        raise FileExistsError(errno.EEXIST, "not a regular file", os.fspath(target))
    with errors_name(target):
        _delete_leftovers(target)
        partial, held = _reserve(target)
        try:
            yield partial
            _sync(partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            if held is not None:
                os.close(held)


@contextmanager
def errors_name(target: Path) -> Iterator[None]:
    """Errors of the operating system that name no file, or a partial one, name `target`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_ours(error.filename, target):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(target)) from error


def _is_ours(filename: str | bytes | None, target: Path) -> bool:
    path = target if filename is None else Path(os.fsdecode(filename))
    return path.parent == target.parent and (path == target or path.name.startswith(".partial-"))


def _reserve(target: Path) -> tuple[Path, int | None]:
    """A file of a name that nobody else has, locked for as long as the process lives and holds it open."""
    while True:
        partial = target.with_name(f".partial-{secrets.token_hex(4)}-{target.name}")
        held = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:  # Windows renames and deletes no file that is open
            os.close(held)
            return partial, None
        # Another process may have taken it for a leftover before it was locked
        if _lock(held) is not False and partial.exists():
            return partial, held
        os.close(held)


def _lock(held: int) -> bool | None:
    """Whether an open file was locked, None where files cannot be."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Of several processes that come here, the first alone goes on, until the block ends or the process.

    Raises:
        ValueError: it is another one.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        if _lock(held) is False:
            raise ValueError(f"another process is writing to {folder}: wait for it, or choose another folder")
        yield
    finally:
        os.close(held)


def _delete_leftovers(target: Path) -> None:
    """Delete what was to become `target` when a process was killed: nobody locks it any more."""
    if fcntl is None:  # another process may be about to rename what would be opened here
        return
    for leftover in target.parent.glob(f".partial-????????-{escape(target.name)}"):
        try:
            held = os.open(leftover, os.O_WRONLY)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            if _lock(held):
                leftover.unlink(missing_ok=True)
        finally:
            os.close(held)


def _sync(path: Path) -> None:
    """Onto the disk before it gets its name, or a power failure could leave an empty file of that name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
