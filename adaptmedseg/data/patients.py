"""Which cases show one patient, as far as their names tell."""

import re

# Several acquisitions of one patient, as ACDC's patient001_frame01 or follow-up visits, belong in one split.
REPEATED_SCAN = re.compile(r"(.+?)[-_](?:frame|phase|time|visit|ses|session|scan|followup)[-_]?\d+$", re.IGNORECASE)


def named_patient(case_id: str) -> str:
    """The id without an ending such as ``_frame01`` or ``_visit2``."""
    repeated = REPEATED_SCAN.match(case_id)
    return repeated[1] if repeated else case_id
