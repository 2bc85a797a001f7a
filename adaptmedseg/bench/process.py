"""Measuring in processes of their own, so that their peak memory is their own."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")
START: Literal["spawn", "fork"] = "spawn"  # a forked process would count this one's memory as its own


def in_own_process(name: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work(*arguments)` gives in a fresh process. RuntimeError where it dies (for want of memory, mostly)."""
    return in_processes(name, 1, work, *arguments)[0]


def in_processes(name: str, count: int, work: Callable[..., Result], *arguments: Any) -> list[Result]:
    """What `work(*arguments)` gives in each of `count` fresh processes that know each other as a launcher would have
    it. RuntimeError where one dies; the others are ended then."""
    context: Any = multiprocessing.get_context(START)  # its type has no Process
    port, started = free_port(), []
    try:
        for rank in range(count):
            environment = _environment(rank, count, port) if count > 1 else {}
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, arguments, environment, sender))
            process.start()
            sender.close()
            started.append((process, receiver))
        return [receiver.recv() for _, receiver in started]
    except EOFError:
        for process, _ in started:
            process.terminate()
        raise RuntimeError(f"the process of the way '{name}' died") from None
    finally:
        for process, _ in started:
            process.join()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _child(
    work: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], connection: Connection
) -> None:
    os.environ.update(environment)
    connection.send(work(*arguments))
