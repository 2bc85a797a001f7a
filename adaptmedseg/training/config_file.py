"""Reading a configuration from YAML: what is wrong with it is said with its key and its line."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, SequenceNode

from adaptmedseg.errors import UserError
from adaptmedseg.training.config_lines import in_yaml, named_keys, place_of

Config = TypeVar("Config", bound=BaseModel)


def named_model(path: Path) -> str | None:
    """Which model a configuration says that it trains; None where it doesn't, or can't be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return values.get("model") if isinstance(values, dict) else None


def load_config(path: Path, kind: type[Config], overrides: dict[str, object] | None = None) -> Config:
    """Read a YAML file as `kind`; `overrides` maps dotted keys to values.

    UserError names the file, the line, the key and the remedy; the first thing that is wrong is told.
    """
    text, values = _read(path)
    for key, value in (overrides or {}).items():
        _set(path, values, key.split("."), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        keys = first["loc"] or named_keys(text, first["msg"])
        raise UserError(f"{place_of(path, text, keys, overrides or {})}: {_what(kind, first)}") from None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file; give the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not readable as YAML (it is no text in UTF-8); give another file") from None
    except MarkedYAMLError as error:
        raise UserError(_misspelt(path, error)) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; start from one of the shipped configurations")
    _refuse_twice(path, yaml.compose(text, Loader=yaml.SafeLoader))
    return text, values


def _misspelt(path: Path, error: MarkedYAMLError) -> str:
    """What the YAML parser stumbled over, and in which line."""
    mark = error.problem_mark or error.context_mark
    place = f"{path}, line {mark.line + 1}" if mark else str(path)
    problem = error.problem or error.context or "it cannot be parsed"
    if "'\\t'" in problem:
        return f"{place}: not readable as YAML (a tab); indent with spaces"
    begun = error.context_mark
    if begun and mark and error.context and begun.line != mark.line:
        problem = f"{problem}, {error.context} that begins in line {begun.line + 1}"
    return f"{place}: not readable as YAML ({problem}); mend the file"


def _refuse_twice(path: Path, node: Node | None) -> None:
    """UserError where a key stands twice beside itself: YAML would quietly take the last."""
    seen: dict[str, int] = {}
    for key, inner in node.value if isinstance(node, MappingNode) else ():
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UserError(f"{path}, line {line}: {key.value} stands in line {seen[key.value]} already; remove one")
        seen[key.value] = line
        _refuse_twice(path, inner)
    for inner in node.value if isinstance(node, SequenceNode) else ():
        _refuse_twice(path, inner)


def _what(kind: type[BaseModel], error: ErrorDetails) -> str:
    """What is wrong with the value at a place, in words."""
    keys = error["loc"]
    message = error["msg"].removeprefix("Value error, ")
    if not keys:  # a combination; the value would be the whole file
        return message
    dotted = ".".join(map(str, keys))
    if error["type"] == "extra_forbidden":
        known = sorted(_fields(kind, keys[:-1]))
        close = get_close_matches(str(keys[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}" if known else "remove it"
        return f"{dotted}: there is no such key; {hint}"
    if error["type"] == "missing":
        return f"{dotted}: is missing; add it"
    if error["type"] == "model_type":
        own = ", ".join(sorted(_fields(kind, keys)))
        return f"{dotted}: takes keys of its own ({own}); write them below it (value: {in_yaml(error['input'])})"
    if error["type"] == "list_type" and not isinstance(error["input"], dict | None):
        return f"{dotted}: takes a list; write [{in_yaml(error['input'])}]"
    return f"{dotted}: {message} (value: {in_yaml(error['input'])})"


def _fields(kind: Any, keys: tuple[int | str, ...]) -> set[str]:
    """The keys that a part of a configuration knows."""
    models = _models(kind)
    if not keys:
        return {name for model in models for name in model.model_fields}
    inner = [model.model_fields[str(keys[0])].annotation for model in models if str(keys[0]) in model.model_fields]
    if not inner and isinstance(keys[0], int):  # an entry of a list
        return _fields(kind, keys[1:])
    return {name for annotation in inner for name in _fields(annotation, keys[1:])}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `list[A] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _set(path: Path, values: dict, keys: list[str], value: object) -> None:
    """Set one dotted key; entries of a list go by their number."""
    whole = ".".join(keys)
    place: dict | list = values
    for depth, key in enumerate(keys[:-1], 1):
        _check_number(path, whole, keys[: depth - 1], place, key)
        if isinstance(place, dict) and key not in place and keys[depth].isdecimal():
            part = ".".join(keys[:depth])
            raise UserError(f"{path}: {whole}: {part} is not in the file; write it out there")
        inner = place.setdefault(key, {}) if isinstance(place, dict) else place[int(key)]
        if not isinstance(inner, dict | list):
            part = ".".join(keys[:depth])
            raise UserError(
                f"{path}: {whole}: cannot be set while {part} is {in_yaml(inner)}; write {part} out in the file"
            )
        place = inner
    _check_number(path, whole, keys[:-1], place, keys[-1])
    if isinstance(place, dict):
        place[keys[-1]] = value
    else:
        place[int(keys[-1])] = value


def _check_number(path: Path, whole: str, above: list[str], place: dict | list, key: str) -> None:
    """UserError where `place` is a list and `key` is not the number of one of its entries."""
    if isinstance(place, list) and (not key.isdecimal() or int(key) >= len(place)):
        count = "1 entry" if len(place) == 1 else f"{len(place)} entries"
        raise UserError(f"{path}: {whole}: {'.'.join(above)} has {count}, numbered from 0; write new ones in the file")
