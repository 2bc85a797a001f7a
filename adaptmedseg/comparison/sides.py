"""New and old: whether a data set is one that the strategies learn, or one like those the base was made of."""

from collections.abc import Iterable, Sequence

from adaptmedseg.comparison.finished import Finished
from adaptmedseg.data.registry import modality
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.wording import listing

NEW, OLD = "new", "old"


def side_of(record: Record, found: Finished) -> str:
    """'MRI, new', 'CT, old' and so on; a data set that no comparison knows is old where it is CT (`side_notes`)."""
    family = modality(record.modality).family
    new = record.dataset in found.new if _is_known(record.dataset, found) else family != "CT"
    return f"{'MRI' if family == 'MR' else family}, {NEW if new else OLD}"


def in_words(side: str) -> str:
    """'MRI, new' as 'new MRI'."""
    return " ".join(reversed(side.split(", ")))


def on_new(records: Iterable[Record], found: Finished) -> list[Record]:
    """Those of data that are new to the base."""
    return [record for record in records if side_of(record, found).endswith(NEW)]


def side_notes(records: Sequence[Record], found: Finished) -> list[str]:
    """A sentence on the data sets whose side no comparison states."""
    unknown = list(dict.fromkeys(r.dataset for r in records if not _is_known(r.dataset, found)))
    if not unknown:
        return []
    return [f"No comparison names {listing(unknown)}: CT counts as old to the base there, all else as new."]


def _is_known(dataset: str, found: Finished) -> bool:
    return dataset in found.new or dataset in found.old
