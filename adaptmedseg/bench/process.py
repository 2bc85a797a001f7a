"""Measuring in a process of its own, so that its peak memory is its own."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_own_process(name: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work(*arguments)` gives in a fresh process. RuntimeError where it dies (for want of memory, mostly)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, arguments, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process of the way '{name}' died") from None
    finally:
        process.join()


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], connection: Connection) -> None:
    connection.send(work(*arguments))
