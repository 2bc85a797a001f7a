"""One strategy with one seed, trained and scored in a process of its own: `python -m adaptmedseg.comparison.job FILE`.

A process of its own has its own peak of memory, and its end, whatever it died of, does not end the comparison.
"""

import shutil
import sys
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from adaptmedseg.checkpoints.store import MODEL_FILE
from adaptmedseg.data.files import write_atomic
from adaptmedseg.device import keep_freed_memory, pick_device
from adaptmedseg.errors import UserError, exit_code
from adaptmedseg.evaluation.evaluate import asked_of, evaluate_cases
from adaptmedseg.evaluation.mask_store import MaskStore
from adaptmedseg.evaluation.metrics import MeasureSettings
from adaptmedseg.evaluation.records import Record, write_results
from adaptmedseg.evaluation.study import OVERLAYS, StudyData, draw_overlays, study_data
from adaptmedseg.inference.loading import LoadedModel, check_unseen, load_model
from adaptmedseg.inference.machine import PeakMemory
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.run import run_training

JOB, COST, SCORES, RUN, LOG = "job.yaml", "cost.json", "results.jsonl", "run", "log.txt"


class Question(BaseModel):
    """A prepared data set, the structures to ask for in its test cases (of `fold`, where one is named)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    fold: int | None
    structures: list[str]

    def data(self) -> StudyData:
        """The cases. UserError where there are none."""
        return study_data(Path(self.path), "test", self.fold)


class Job(BaseModel):
    """What to train, None for nothing, and what to ask afterwards; `name` is the strategy's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    base: str
    config: TrainConfig | None
    questions: list[Question]

    def to_yaml(self) -> str:
        """The job as text; JSON would lose infinite temperatures."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> "Job":
        """Read what `to_yaml` wrote. UserError for anything else."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, UnicodeDecodeError, ValidationError):
            raise UserError(f"{path}: missing or damaged; remove the folder {path.parent}") from None


class Cost(BaseModel):
    """What a training cost: trained numbers, bytes of its file, steps, minutes of training, and the peak of memory in
    MiB (of the device, where it is none of the main memory; None where it can't be told)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trained: int
    file_bytes: int
    steps: int
    minutes: float
    peak_mib: float | None


def train_and_measure(config: TrainConfig, out: Path, device_name: str) -> Cost:
    """Train into OUT and say what it took."""
    device = pick_device(device_name)
    peak = PeakMemory(device)
    _, result = run_training(config, out, device)
    used = peak.read()
    most = used.get(str(device), used.get("main memory"))
    return Cost(
        trained=result.trained,
        file_bytes=(out / MODEL_FILE).stat().st_size,
        steps=result.steps,
        minutes=result.minutes,
        peak_mib=most if isinstance(most, float) else None,
    )


def score(job: Job, loaded: LoadedModel, device_name: str, pictures: Path) -> list[Record]:
    """Scores of a model on all questions, asked by name; its worst, median and best masks are drawn into a folder of
    `pictures`. UserError where it was trained on one of the cases."""
    device = pick_device(device_name)
    sources = [(question, question.data()) for question in job.questions]
    for _, source in sources:
        for case in source.cases:
            check_unseen(loaded, job.name, case.sources["image"]["sha256"], f"{source.dataset.name}/{case.id}")
    segmenter = CropSegmenter(loaded.model.to(device), loaded.size, loaded.resize, device)
    fixed = isinstance(loaded.model, ReferenceUNet)
    records: list[Record] = []
    masks = MaskStore()
    for question, source in sources:
        names = [name for name in question.structures if not fixed or name in loaded.structures]
        asked = asked_of(loaded, job.name, source.dataset.name, measures=MeasureSettings())
        records += evaluate_cases(
            segmenter, source.cases, names, asked, on_mask=lambda _case, _name, mask, record: masks.put(record, mask)
        )
    shutil.rmtree(pictures / OVERLAYS, ignore_errors=True)
    draw_overlays(pictures, records, masks, job.name, [source for _, source in sources])
    return records


def work(folder: Path, device: str) -> None:
    """Do what of the folder's job is not done: a training counts as done when its cost is written, its scores last."""
    job = Job.from_yaml(folder / JOB)
    run, cost = folder / RUN, folder / COST
    if job.config is not None and not (cost.exists() and run.is_dir()):
        shutil.rmtree(run, ignore_errors=True)
        write_atomic(cost, train_and_measure(job.config, run, device).model_dump_json(indent=1))
    model = load_model(job.base) if job.config is None else load_model(str(run))
    write_results(folder / SCORES, score(job, model, device, folder))


def main() -> int:
    """The process; its last line on standard error says what went wrong."""
    keep_freed_memory()
    return exit_code(lambda: work(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
