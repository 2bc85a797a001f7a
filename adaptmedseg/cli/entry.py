"""Where the program starts: what can go wrong before anything is imported is said in a sentence too."""

import sys

SHORT = (
    "error: there is not enough memory to start; raise the limit (ulimit -v) to 5 GB or more, or take a larger machine"
)


def run() -> None:
    """The program `adaptmedseg`. Exit codes as in `adaptmedseg.cli.main`."""
    try:
        from adaptmedseg.cli.main import run as main
    except MemoryError:
        sys.exit(_short())
    except ImportError as error:
        if not any(words in str(error) for words in ("failed to map segment", "Cannot allocate memory")):
            raise
        sys.exit(_short())
    main()


def _short() -> int:
    print(SHORT, file=sys.stderr)
    return 2
