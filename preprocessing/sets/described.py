"""Folders with a dataset.json of the Decathlon's or of nnU-Net's form: channels, labels, regions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptmedseg.preprocessing.sets.finding import visible_files

from adaptmedseg.data.registry import default_registry
from adaptmedseg.errors import UserError


def description(root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the one dataset.json below `root`, and its contents.

    Raises:
        UserError: there is none, there are several, or it cannot be read.
    """
    files = [path for path in visible_files(root) if path.name == "dataset.json"]
    if len(files) != 1:
        what = "no dataset.json" if not files else f"{len(files)} dataset.json files"
        raise UserError(f"{root} holds {what} where there must be one; name the folder of one data set.")
    return files[0].parent, read_json(files[0])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); repair it or get it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no description of a data set; get it again.")
    return content


def stated_licence(described: Mapping[str, Any]) -> str:
    """The licence that a description states, in either spelling; empty where it states none."""
    return str(described.get("licence") or described.get("license") or "")


def channels(described: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    """Channel number to contrast (a word of lower case) and modality (a registry name).

    Raises:
        UserError: no channel is named, or one is no modality.
    """
    stated = described.get("channel_names") or described.get("modality") or {}
    if not isinstance(stated, Mapping) or not stated:
        raise UserError('dataset.json names no channel_names or modality; add them, as {"0": "T2"}.')
    registry = default_registry()
    return {
        int(number): (re.sub(r"\W+", "", str(name).lower()), registry.modality(str(name)).name)
        for number, name in stated.items()
    }
