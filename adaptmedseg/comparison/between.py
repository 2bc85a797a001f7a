"""A strategy of one comparison against one of another, where their bases differ (see `make random-start`):

python -m adaptmedseg.comparison.between COMPARISON/STRATEGY OTHER/STRATEGY [--leave-out DATASET]
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

from adaptmedseg.comparison.outcome import mean_over_seeds
from adaptmedseg.comparison.table import case_scores, differences, patients_p, summarise
from adaptmedseg.errors import UserError, exit_code
from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.records import Record, read_scores
from adaptmedseg.evaluation.study import RESULTS


def difference_sentence(first: Path, second: Path, left_out: Collection[str] = ()) -> str:
    """What `second` scores beyond `first`, both the folders of a strategy, over the cases that both have.

    A case's Dice is the mean over its structures and over seeds; the interval is bootstrapped over patients, p is
    Wilcoxon's over patients. UserError where there is nothing to compare.
    """
    before, after = (case_scores(_records(folder, left_out)) for folder in (first, second))
    changes = differences(before.dice, after.dice)
    change = summarise(changes, before.patients)
    if change is None:
        raise UserError(f"{first}, {second}: have no case in common; compare strategies that were scored on the same")
    better = [key for key, value in changes.items() if value > 0]
    patients = {before.patients[key] for key in changes}
    means = [sum(side.dice[key] for key in changes) / len(changes) for side in (before, after)]
    p = patients_p(before, after)
    return (
        f"{first}: {wording.score(means[0])}; {second}: {wording.score(means[1])}; "
        f"{wording.change(change.mean)} ({wording.change_interval(change.interval)}), higher in {len(better)} of "
        f"{wording.count(len(changes), 'case')} of {wording.count(len(patients), 'patient')}, p {wording.p_value(p)}"
    )


def _records(folder: Path, left_out: Collection[str]) -> list[Record]:
    files = sorted(folder.glob(f"seed*/{RESULTS}"))
    if not files:
        raise UserError(f"{folder}: holds no scores (seed*/{RESULTS}); give a strategy's folder of a comparison")
    records = mean_over_seeds([read_scores(file) for file in files])
    return [record for record in records if record.dataset not in left_out]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--leave-out", action="append", default=[], metavar="DATASET", help="a data set not to compare")
    options = parser.parse_args()
    return exit_code(lambda: print(difference_sentence(options.first, options.second, options.leave_out)))


if __name__ == "__main__":
    sys.exit(main())
