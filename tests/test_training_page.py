"""The page on training names every key of a configuration with its default, and its example trains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from small_cases import call
from training_cases import training_chain

from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
MISSING = "—"


def keys_of(kind: type[BaseModel], above: str = "") -> dict[str, Any]:
    """Every key that is no group of keys, and its default, or what stands for none."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None:
            default = field.get_default(call_default_factory=True)
            found[above + name] = MISSING if default is PydanticUndefined else default
        else:
            model, in_list = inner
            found |= keys_of(model, f"{above}{name}.0." if in_list else f"{above}{name}.")
    return found


def model_in(annotation: Any) -> tuple[type[BaseModel], bool] | None:
    """The model in `A`, `A | None` or `list[A]`, and whether it is in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    found = [model for argument in get_args(annotation) if (model := model_in(argument)) is not None]
    return (found[0][0], get_origin(annotation) is list) if found else None


def documented() -> dict[str, Any]:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", PAGE, re.MULTILINE)
    assert len(rows) == len({key for key, _ in rows})
    return {key: MISSING if default == MISSING else yaml.safe_load(default) for key, default in rows}


def test_the_page_has_every_key_with_its_default() -> None:
    assert documented() == keys_of(TrainConfig)


def test_a_key_that_is_not_there_would_be_seen() -> None:
    keys = keys_of(TrainConfig)
    assert {"name", "budget.steps", "adapter.layers.0.rank", "prompts.box_jitter.small", "data.normalise.rule"} <= {
        *keys
    }
    assert keys["name"] == MISSING
    assert keys["optimiser.lr"] == 1e-3


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (found,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(found, encoding="utf-8")
    return tmp_path / "mine.yaml"


def test_the_example_trains(example: Path, tmp_path: Path) -> None:
    assert load_config(example, TrainConfig).budget.minutes == 30
    chain = training_chain(tmp_path / "chain")
    options = ["--data", chain / "data", "--base", chain / "base.safetensors", "--device", "cpu"]
    changes = ["budget.minutes=null", "budget.steps=1", "optimiser.lr=0.0005", "adapter.priors=null"]
    outcome = call("train", example, "--out", tmp_path / "run", *options, *changes)
    assert outcome.code == 0, outcome


def test_the_documented_launcher_for_cpus_starts_as_many_processes_as_it_says(tmp_path: Path) -> None:
    commands = re.findall(r"^ +\.venv/bin/(\w+) (.+) -m adaptmedseg\.train .*--device cpu$", PAGE, re.MULTILINE)
    assert [launcher for launcher, _ in commands] == ["torchrun"]
    script = tmp_path / "count.py"
    script.write_text(
        "import pathlib, sys\nfrom accelerate import PartialState\nstate = PartialState(cpu=True)\n"
        "(pathlib.Path(sys.argv[1]) / f'{state.process_index}-of-{state.num_processes}').touch()\n",
        encoding="utf-8",
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", *commands[0][1].split()]
    subprocess.run([*launcher, str(script), str(tmp_path)], check=True, timeout=300, capture_output=True)
    assert sorted(path.name for path in tmp_path.glob("*-of-*")) == ["0-of-2", "1-of-2"]
