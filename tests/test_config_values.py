"""Numbers of a configuration that no training can use are refused with their line, before anything is read."""

from pathlib import Path

import pytest

from adaptmedseg.errors import UserError
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config

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
