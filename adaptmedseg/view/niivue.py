"""NiiVue's script, as the package ipyniivue brings it.

ipyniivue is a widget for notebooks. Of it only the script is used, which holds all of NiiVue (BSD-2-Clause) as one
module without links to the network; Python's part of it is never imported. The script exports the widget alone, so one
line is added that exports the class too, under the name that the script itself calls it by.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from adaptmedseg.errors import UserError

PACKAGE = "ipyniivue"
REMEDY = "pip install 'adaptmedseg[view]'"
# The widget says that it makes a NiiVue, and then makes one: "... = new CLASS(options)".
_MADE = re.compile(r'"Creating new Niivue instance"\);.{0,200}?=new ([A-Za-z_$][\w$]*)\(')


def niivue_module() -> bytes:
    """An ES module that exports the class `Niivue`.

    Raises:
        UserError: ipyniivue is not installed, or is of a release whose script looks otherwise.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {PACKAGE}, which the viewer needs, is not installed; run {REMEDY}")
    path = Path(spec.origin).parent / "static" / "widget.js"
    try:
        return with_class(path.read_text(encoding="utf-8")).encode()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is no script of NiiVue that the viewer knows ({error}); run {REMEDY}") from None


def with_class(script: str) -> str:
    """The script with one more export, `Niivue`. ValueError where the class is not found."""
    made = set(_MADE.findall(script))
    if len(made) != 1:
        raise ValueError(f"{len(made)} classes are made where one was expected")
    return f"{script}\nexport {{ {made.pop()} as Niivue }};\n"
