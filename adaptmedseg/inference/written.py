"""The files of one case, which get their places together or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adaptmedseg.errors import UserError


@dataclass
class Written:
    """Files that wait in a temporary folder, and where they belong."""

    moves: list[tuple[Path, Path]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, write: Callable[[Path], None], temporary: Path, final: Path) -> None:
        started = time.perf_counter()
        try:
            write(temporary)
        except UserError as error:  # it names the temporary file, which means nothing to the user
            raise UserError(str(error).replace(str(temporary), str(final))) from error
        except OSError as error:
            raise _file_error(final, error) from error
        self.seconds += time.perf_counter() - started
        self.moves.append((temporary, final))

    def move(self) -> None:
        """Put all files in their places, the note that explains them last."""
        for temporary, final in self.moves:
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, final)
            except OSError as error:
                raise _file_error(final, error) from error


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as the target; what is left in it goes with it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    except OSError as error:
        raise _file_error(target, error) from error
    with place as name:
        yield Path(name)


def _file_error(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another --out" if full else "check its permissions or choose another --out"
    return UserError(f"{path}: {error.strerror or error}; {remedy}")
