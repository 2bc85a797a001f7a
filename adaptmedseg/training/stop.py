"""Requests to stop: a queue's signal ends a training at the next step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))  # Windows has no SIGUSR1
STOPPED_EXIT = 75  # EX_TEMPFAIL of sysexits.h: try again later


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """A training ended on request, before its budget was spent; started again with --resume it goes on."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False

    def make(self) -> None:
        self.made = True

    @contextmanager
    def by_signal(self) -> Iterator["StopRequest"]:
        """Within the block SIGTERM and SIGUSR1 make the request instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
            yield self
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.make()

        before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    """For processes that make batches: a signal to the whole group is their parent's to answer, who ends them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
