"""A folder that one process at a time works in."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptmedseg.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process can hold the folder's lock, which ends with its process, however that ends.

    A file system without locks is no obstacle. UserError where another process holds it.
    """
    with (folder / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise UserError(f"{folder}: another process is training here; wait for its end") from None
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process holds the lock of a file within the block; without `wait`, false where another holds it.

    A file system without locks lets everybody in.
    """
    with path.open("a", encoding="utf-8") as file:
        mine = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                mine = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield mine
