"""The one error type that users see as a sentence instead of a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input from the user's side: one clear sentence that names the file, the value and the remedy.

    The command line prints the sentence to standard error and exits with code 2; Python callers can catch it.
    """


def exit_code(work: Callable[[], int | None]) -> int:
    """Run a module's program: the exit code that `work` gives (None is 0), or 2 with a UserError's sentence on standard
    error."""
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
