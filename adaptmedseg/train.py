"""`accelerate launch -m adaptmedseg.train ...` is `adaptmedseg train ...` in every process that the launcher starts."""

import sys

from adaptmedseg.cli.entry import run

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    run()
