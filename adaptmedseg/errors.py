"""The one error type that users see as a sentence instead of a traceback."""


class UserError(Exception):
    """Bad input from the user's side: one clear sentence that names the file, the value and the remedy.

    The command line prints the sentence to standard error and exits with code 2; Python callers can catch it.
    """
