"""An end that no library can put off, for the test before training; nothing heavy is imported here."""

import os
import signal
import socket
import sys
import threading

FAILED_EXIT = 3
GRACE_SECONDS = 2.0


def end_at_all_costs(seconds: float, rank: int) -> None:
    """End this process after `seconds`, even out of a library's endless wait: first with a sentence, then without."""

    def give_up() -> None:
        tell(rank, f"the test hung and was ended after {seconds:.0f} s")
        os._exit(FAILED_EXIT)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)  # its default action needs no Python to run


def tell(rank: int, sentence: str) -> None:
    """One rank's sentence, on standard error."""
    print(f"error: smoke test, rank {rank} on {socket.gethostname()}: {sentence}", file=sys.stderr, flush=True)
