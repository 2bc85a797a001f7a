"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptmedseg.errors import UserError

_OWNER = ".writing"


@contextmanager
def staged(out: Path, manifest: str, check: Callable[[Path], object], *, overwrite: bool) -> Iterator[Path]:
    """Give ``OUT.partial`` to write to; rename it to `out` on success, remove it on failure.

    A folder that exists is replaced with `overwrite` alone, and where it holds the file `manifest` and `check` finds
    nothing wrong with it. Raises UserError where `out` is in use, or the disk is full.
    """
    try:
        with _partial(out, manifest, check, overwrite) as partial:
            yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{out} could not be written because the disk is full; free some space.") from error
        place = error.filename or out
        raise UserError(f"{out} could not be made ({place}: {error.strerror}); check paths and permissions.") from error


@contextmanager
def _partial(out: Path, manifest: str, check: Callable[[Path], object], overwrite: bool) -> Iterator[Path]:
    _check_free(out, manifest, check, overwrite)
    partial = out.with_name(out.name + ".partial")
    _clear_leftover(partial)
    partial.mkdir(parents=True)
    (partial / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    try:
        yield partial
        (partial / _OWNER).unlink()
        replaced = out.with_name(out.name + ".replaced")
        if out.exists():
            os.replace(out, replaced)  # what was there stays whole until the new set has its name
        os.replace(partial, out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path, manifest: str, check: Callable[[Path], object], overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose a new folder for the prepared data.")
    if not any(out.iterdir()):
        return
    if not (out / manifest).is_file():
        raise UserError(f"{out} holds other files; choose a new or empty folder for the prepared data.")
    check(out)
    if not overwrite:
        raise UserError(f"{out} already holds a data set; choose another folder or pass --overwrite.")


def _clear_leftover(partial: Path) -> None:
    """Remove what a killed run left; refuse while that run lives or where the folder is not ours."""
    if not partial.exists():
        return
    owner = partial / _OWNER
    if not owner.is_file():
        raise UserError(f"{partial} is in the way; move it or choose another output folder.")
    host, _, pid = owner.read_text(encoding="utf-8").partition(" ")
    if host == socket.gethostname() and pid.isdigit() and _alive(int(pid)):
        raise UserError(f"{partial} is being written by process {pid}; wait for it or choose another output folder.")
    shutil.rmtree(partial)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
