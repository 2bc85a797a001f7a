"""How much memory trainings take: a measured table, and what of it fits into a given memory."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from itertools import product
from pathlib import Path

from adaptmedseg.bench.inference import SIZES
from adaptmedseg.bench.training import measure_alone
from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.inference.machine import Bytes
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.training.config import TrainConfig

SHIPPED = "training_memory.csv"
MARGIN = 1.2  # on what was measured: other versions and processors lay memory out in other ways
CONTEXT = 2**29  # bytes that a graphics processor's driver and libraries take before there is a model


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a training step takes: the size of the base, the rank of LoRA (0: no adapter, all
    weights), images and structures in each at once, the number format, and gradient checkpointing."""

    size: str
    rank: int
    images: int
    structures: int
    precision: str
    checkpointing: bool

    @property
    def view(self) -> str:
        """The voxels of a view."""
        return "×".join(map(str, SIZES[self.size].spatial_size))

    def applied(self, config: TrainConfig) -> TrainConfig:
        """A configuration with one kind of layer adapter, changed to this setting."""
        values = config.model_dump(mode="json")
        values |= {
            "batch_size": self.images,
            "structures_per_image": self.structures,
            "precision": self.precision,
            "compute": values["compute"] | {"gradient_checkpointing": self.checkpointing},
        }
        if self.rank == 0:
            values["adapter"] = None
        else:
            values["adapter"]["layers"][0] |= {"rank": self.rank}
        return TrainConfig.model_validate(values)

    def overrides(self) -> str:
        """The same, as `adaptmedseg train` takes it."""
        adapter = f"adapter.layers.0.rank={self.rank}" if self.rank else "adapter=null"
        return (
            f"{adapter} batch_size={self.images} structures_per_image={self.structures} precision={self.precision} "
            f"compute.gradient_checkpointing={str(self.checkpointing).lower()}"
        )


@dataclass(frozen=True)
class Row:
    """A setting and what its step took: all memory of the process, of that the model's and the training's, seconds of
    the processor, and where it was measured."""

    setting: Setting
    peak_mib: int
    training_mib: int
    processor_seconds: float
    device: str

    def needed(self) -> Bytes:
        """What to have free for it on a graphics processor, with the margin."""
        return int(self.training_mib * 2**20 * MARGIN) + CONTEXT


def settings(size: str) -> Iterator[Setting]:
    """The settings of the shipped table for a size."""
    for rank, (images, structures), precision, checkpointing in product(
        (0, 16), ((1, 1), (2, 3)), ("fp32", "bf16"), (False, True)
    ):
        yield Setting(size, rank, images, structures, precision, checkpointing)
    for rank in (4, 64):
        yield Setting(size, rank, 2, 3, "bf16", False)
    for images in (4, 8):
        yield Setting(size, 16, images, 3, "bf16", False)


def measure_row(setting: Setting, config: TrainConfig, device: str) -> Row:
    """Two steps of a setting in a process of its own."""
    found = measure_alone(SIZES[setting.size], setting.applied(config), device, 1)
    return Row(
        setting,
        round(found.peak / 2**20),
        round((found.peak - found.program) / 2**20),
        round(found.seconds.processor, 2),
        device,
    )


def with_lora(config: TrainConfig) -> AdapterConfig:
    """The configuration's adapter. UserError where it has no layers whose rank could be changed."""
    if config.adapter is None or not config.adapter.layers:
        raise UserError(f"{config.name}: has no adapter on layers; take a configuration that has one, such as adapt")
    return config.adapter


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table as CSV."""
    text = io.StringIO()
    names = [field.name for field in (*fields(Setting), *fields(Row)) if field.name != "setting"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        writer.writerow(values.pop("setting") | values)
    write_atomic(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Read a table that `write_rows` wrote. UserError where it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(values) for values in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError):
        raise UserError(f"{path}: is no table of `adaptmedseg bench training-memory`; make one with it") from None


def shipped_rows() -> list[Row]:
    """The table that comes with the package."""
    return read_rows(Path(str(resources.files("adaptmedseg.bench") / SHIPPED)))


def _row(values: dict[str, str]) -> Row:
    setting = Setting(
        values["size"],
        int(values["rank"]),
        int(values["images"]),
        int(values["structures"]),
        values["precision"],
        {"True": True, "False": False}[values["checkpointing"]],
    )
    return Row(
        setting,
        int(values["peak_mib"]),
        int(values["training_mib"]),
        float(values["processor_seconds"]),
        values["device"],
    )


def proposals(rows: Sequence[Row], budget: Bytes) -> list[Row]:
    """For each size and for LoRA and all weights, the row that fits and does most: the most images and structures at
    once, of those without gradient checkpointing, which costs time, then in bf16, then the higher rank."""
    best: dict[tuple[str, bool], Row] = {}
    for row in sorted(rows, key=_how_much):
        if row.needed() <= budget:
            best[row.setting.size, row.setting.rank == 0] = row
    return [best[key] for key in sorted(best, key=lambda key: (list(SIZES).index(key[0]), key[1]))]


def _how_much(row: Row) -> tuple[int, bool, bool, int]:
    of = row.setting
    return of.images * of.structures, not of.checkpointing, of.precision == "bf16", of.rank


def smallest(rows: Sequence[Row]) -> Row:
    """The row that needs least."""
    return min(rows, key=Row.needed)
