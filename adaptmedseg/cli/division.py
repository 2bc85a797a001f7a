"""How `prepare` divides patients, from its options."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from adaptmedseg.errors import UserError
from adaptmedseg.preprocessing.committed import TEST_FRACTION, VAL_FRACTION, committed_lists
from adaptmedseg.preprocessing.split import Partition


@dataclass(frozen=True)
class Division:
    """The options that say how patients are divided, as given."""

    test_fraction: float | None
    val_fraction: float | None
    folds: int | None
    by_site: bool
    left_out_site: str | None
    seed: int | None


def read_division(
    test_fraction: float | None, val_fraction: float | None, folds: str | None, site: str | None, seed: int | None
) -> Division:
    """The options together. UserError where one makes another meaningless."""
    number, by_site = _folds(folds)
    if site is not None:
        why = (
            f"means nothing with --leave-site-out {site}, whose patients are the test cases; leave one of the two out."
        )
        refuse_options({"--test-fraction": test_fraction, "--folds": folds}, why)
    if folds is not None:
        why = "means nothing with --folds, which divide all patients; leave one of the two out."
        refuse_options({"--test-fraction": test_fraction, "--val-fraction": val_fraction}, why)
    return Division(test_fraction, val_fraction, number, by_site, site, seed)


def shares_of(division: Division) -> dict[str, Any]:
    """Arguments of `prepare_folder`; what was not given is as in the committed lists."""
    given = asdict(division)
    defaults = {"test_fraction": TEST_FRACTION, "val_fraction": VAL_FRACTION, "seed": 0}
    return {key: defaults.get(key) if value is None else value for key, value in given.items()}


def partition_of(name: str, division: Division) -> Partition:
    """The set's own lists, unless an option asks for something else."""
    own = committed_lists(name)
    if any(given is not None for given in (division.seed, division.test_fraction, division.val_fraction)):
        shares = shares_of(division)
        own = Partition(shares["test_fraction"], shares["val_fraction"], seed=shares["seed"], published=False)
    if division.left_out_site is not None or division.by_site or division.folds is not None:
        return replace(own, folds=division.folds, by_site=division.by_site, left_out_site=division.left_out_site)
    return own


def _folds(text: str | None) -> tuple[int | None, bool]:
    """'5' to (5, False), 'sites' to (None, True)."""
    if text is None:
        return None, False
    if text.strip().lower() == "sites":
        return None, True
    if not text.isdigit() or int(text) < 2:
        raise UserError(f"--folds {text}: is neither a number of 2 or more nor 'sites'; choose one.")
    return int(text), False


def refuse_options(options: Mapping[str, object], why: str) -> None:
    """Refuse options that were given and mean nothing here."""
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option} {why}")
