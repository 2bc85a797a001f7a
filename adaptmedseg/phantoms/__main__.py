"""Write a folder of generated phantoms: python -m adaptmedseg.phantoms --out DIR --count N --modality CT --seed S."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adaptmedseg.errors import UserError
from adaptmedseg.phantoms import MODALITIES, REGIONS, write_phantoms


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adaptmedseg.phantoms", description="Write generated phantoms.")
    parser.add_argument("--out", type=Path, required=True, help="folder for images/, labels/ and dataset.json")
    parser.add_argument("--count", type=int, required=True, help="number of cases")
    parser.add_argument("--modality", default="CT", help=f"one of: {', '.join(MODALITIES)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole set")
    parser.add_argument("--regions", nargs="+", default=list(REGIONS), help=f"of: {', '.join(REGIONS)}")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    try:
        out = write_phantoms(
            args.out,
            count=args.count,
            modality=args.modality,
            seed=args.seed,
            regions=args.regions,
            workers=args.workers,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{args.count} {args.modality} phantoms in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
