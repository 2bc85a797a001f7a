"""Where a setting of a configuration stands: the line of the file, or the command line."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode, Node, SequenceNode

from adaptmedseg.errors import UserError


def place_of(path: Path, text: str, keys: tuple[int | str, ...], overrides: dict[str, object]) -> str:
    """Where a value came from: a line of the file, or the command line."""
    dotted = ".".join(map(str, keys))
    for key, value in overrides.items():
        if dotted == key or dotted.startswith(f"{key}."):
            return f"{path}: {key}={in_yaml(value)} (given beside the file)"
    line = line_of(text, keys)
    return str(path) if line is None else f"{path}, line {line}"


def in_yaml(value: object) -> str:
    """A value as the file has it: null and true, not Python's None and True."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


@contextmanager
def told_with_line(path: Path, kind: type[BaseModel], overrides: dict[str, object]) -> Iterator[None]:
    """Where a sentence about a setting comes later than the reading, as it needs data or the base: add its place.

    A sentence is one about a setting where it begins with a key of `kind`, or with anything and then a dotted key.
    """
    try:
        yield
    except UserError as error:
        keys = _blamed(str(error), kind)
        if not keys:
            raise
        try:
            text = path.read_text(encoding="utf-8")
            place = place_of(path, text, keys, overrides)
        except (OSError, yaml.YAMLError, UnicodeDecodeError):  # changed in the meantime
            raise error from None
        raise UserError(f"{place}: {error}") from None


def _blamed(message: str, kind: type[BaseModel]) -> tuple[int | str, ...]:
    """The setting that a sentence is about, such as 'batch_size 3: ...' or 'set: data.patients is 9, ...'."""
    found = re.match(r"(?:\S+: )?([a-z_]+(?:\.[a-z_0-9]+)+)\b", message) or re.match(r"([a-z_]+) ?[^:;,.]*: ", message)
    keys = found[1].split(".") if found else []
    if keys == ["model"]:  # "model 'NAME': ..." tells of weights that cannot be loaded, which `base` names
        keys = ["base"]
    if not keys or keys[0] not in kind.model_fields:
        return ()
    return tuple(int(key) if key.isdecimal() else key for key in keys)


def line_of(text: str, keys: tuple[int | str, ...]) -> int | None:
    """The line, from 1, of the key that a path of keys and indices leads to, or of the last on the way that is there;
    None where not even the first is."""
    node: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for key in keys:
        found = _inside(node, key)
        if found is None:
            break
        line, node = found
    return line


def named_keys(text: str, message: str) -> tuple[str, ...]:
    """The first key of the file that a sentence about several of them names, dotted ones before others."""
    words = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)
    for word in sorted(words, key=lambda word: "." not in word):
        keys = tuple(word.split("."))
        if line_of(text, keys) is not None:
            return keys
    return ()


def _inside(node: Node | None, key: int | str) -> tuple[int, Node] | None:
    """The line of a key in a node, and what it holds."""
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if name.value == str(key):
                return name.start_mark.line + 1, value
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line + 1, node.value[key]
    return None
