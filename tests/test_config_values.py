"""Numbers of a configuration that no training can use are refused with their line, before anything is read."""

from pathlib import Path

import pytest

from adaptmedseg.errors import UserError
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config
from adaptmedseg.training.config_lines import told_with_line

START = "name: mine\ndata: {paths: [set]}\nbudget: {steps: 4}\n"


def load(folder: Path, text: str) -> TrainConfig:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, TrainConfig)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("optimiser: {lr: .inf}", "optimiser.lr"),
        ("optimiser: {weight_decay: .inf}", "optimiser.weight_decay"),
        ("loss: {dice: .inf}", "loss.dice"),
        ("loss: {focal_gamma: .inf}", "loss.focal_gamma"),
        ("adapter: {layers: [{kind: lora, rank: 4, alpha: .inf}]}", "adapter.layers.0.alpha"),
        ("adapter: {priors: {modality_loss: .inf}}", "adapter.priors.modality_loss"),
        ("batch_size: true", "batch_size"),
        ("optimiser: {lr: true}", "optimiser.lr"),
        ("checkpoint: {steps: true}", "checkpoint.steps"),
    ],
)
def test_an_infinite_number_or_a_switch_for_a_number_is_refused_with_its_line(
    tmp_path: Path, line: str, key: str
) -> None:
    with pytest.raises(UserError, match=rf"line 4: {key}: Input should be a .*number"):
        load(tmp_path, START + line + "\n")


def test_infinity_stays_where_it_means_something(tmp_path: Path) -> None:
    config = load(tmp_path, START + "optimiser: {clip: .inf}\n")
    assert config.optimiser.clip == float("inf")
    balanced = load(tmp_path, START.replace("[set]", "[set], balance: {dataset: .inf}"))
    assert balanced.data.balance.dataset == float("inf")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: mine\ndata: {paths: [a\nseed: 1\n", "line 3: not readable as YAML (expected ',' or ']', but got ':', "
         "while parsing a flow sequence that begins in line 2); mend the file"),
        ("name: mine\ndata:\n\tpaths: [a]\n", "line 3: not readable as YAML (a tab); indent with spaces"),
        (START + "batch_size: null\n", "line 4: batch_size: Input should be a valid integer (value: null)"),
        (START.replace("[set]", "set"), "line 2: data.paths: takes a list; write [set]"),
        (START.replace("[set]", "[a, b, ./a]"), "line 2: data.paths: Value error, a stands twice; name each set once"),
        (START.replace("[set]", "[set], structures: []"), "line 2: data.structures: names nothing to learn; name "
         "structures, or set it to null for all"),
        (START.replace("mine", "''"), "line 1: name: String should have at least 1 character (value: '')"),
        (START + f"seed: {2**63}\n", f"line 4: seed: Input should be less than {2**63} (value: {2**63})"),
        (START + "prompts: {box: 0.5}\n", "line 4: prompts: prompt shares sum to 1.5, not to 1; text is 1 where it is "
         "left out: set it too"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_words_of_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    said = str(error.value).removeprefix(f"{tmp_path / 'mine.yaml'}, ")
    assert said.split(" (value: {")[0].split(" (value: [")[0] == sentence.replace("Value error, ", "")


def test_a_set_named_from_here_and_from_the_root_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2: data.paths: .*set stands twice; name each set once"):
        load(tmp_path, START.replace("[set]", f"[set, {Path('set').absolute()}]"))


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("batch_size 3: 2 processes cannot share it; make it a multiple of 2", ", line 4"),
        ("base 'nothere': neither a known name nor a file", ": base=nothere (given beside the file)"),
        ("model 'nothere': neither a known name nor a file", ": base=nothere (given beside the file)"),
        ("data.embeddings: data.zoom_in shows another window; set it to 0", ", line 2"),
        ("adapter.layers.0.targets: 'x' matches no layer; the nearest are y", ", line 6"),
        ("set: data.patients is 9, and there are 6 patients; lower it", ", line 2"),
        ("set is no prepared data set; make one", None),
        ("a base is not here: fetch it", None),
    ],
)
def test_a_setting_that_data_or_base_refuse_is_told_with_its_line(
    tmp_path: Path, message: str, place: str | None
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(START + "batch_size: 3\nadapter:\n  layers: [{kind: lora, targets: [x]}]\n", encoding="utf-8")
    with (
        pytest.raises(UserError) as error,
        told_with_line(path, TrainConfig, {"base": "nothere"}),
    ):
        raise UserError(message)
    assert str(error.value) == (message if place is None else f"{path}{place}: {message}")
