"""`adaptmedseg demo`: the whole story on generated phantoms, from files to a report."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Device, Seed, bar, config_path, console, training_bar
from adaptmedseg.cli.evaluate import study_notes
from adaptmedseg.data.labels import LabelNames
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.device import pick_device
from adaptmedseg.evaluation.report import Command
from adaptmedseg.evaluation.study import (
    StudyData,
    StudyMethod,
    compare_gated,
    draw_overlays,
    run_study,
    save_study,
)
from adaptmedseg.evaluation.study_report import ReportText, report_study
from adaptmedseg.evaluation.verdict import Goals
from adaptmedseg.inference.loading import load_model, ungated
from adaptmedseg.phantoms import write_phantoms
from adaptmedseg.preprocessing.folder import prepare_folder
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config
from adaptmedseg.training.run import run_training
from adaptmedseg.training.run_folder import check_free

# Case seeds derive from these and the demo's seed; the base model's phantoms were drawn from others (make base).
CT_SEED, T2_SEED, T1_SEED = 910_000, 920_000, 930_000
OPEN_GATE = "adapted, gate off"
LABELS: LabelNames = {"1+2": "prostate"}
CAVEATS = (
    "All volumes are generated phantoms, not patients: the figures show that the method works, not how well on scans.",
    "The base model was trained on CT phantoms of the same generator (other seeds); real CT would be further away.",
)
NEXT = (
    Command('adaptmedseg check MY_FOLDER --modality "T2 MRI" --label 1=prostate', "look at your own images and labels"),
    Command(
        'adaptmedseg prepare MY_FOLDER --out prepared/mine --modality "T2 MRI" --label 1=prostate', "prepare them once"
    ),
    Command("adaptmedseg train adapt --data prepared/mine --out runs/mine", "adapt the base to them"),
    Command(
        "adaptmedseg evaluate --model base=small --model adapted=runs/mine --data prepared/mine --out runs/eval",
        "score both on the cases kept aside",
    ),
    Command("adaptmedseg report runs/eval --run adapted=runs/mine", "read the report"),
    Command(
        'adaptmedseg predict SCAN.nii.gz --out masks --modality "T2 MRI" --structures prostate --model runs/mine',
        "segment a new scan",
    ),
)


class Stopwatch:
    """Seconds a stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def demo(
    out: Annotated[Path, typer.Option(help="New folder for everything the demo writes.")] = Path("runs/demo"),
    config: Annotated[str, typer.Option(help="Training configuration.")] = "demo",
    model: Annotated[str, typer.Option(help="The CT base.")] = "small",
    test_cases: Annotated[int, typer.Option(help="Unseen cases a modality.", min=2)] = 10,
    train_cases: Annotated[int, typer.Option(help="Training cases an MRI modality.", min=1)] = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Adapt the shipped CT base to MRI phantoms and report what was gained and lost (about four minutes).

    \b
    Examples:
      adaptmedseg demo
      adaptmedseg demo --out runs/demo2 --seed 1
    """
    check_free(out)
    watch, chosen = Stopwatch(), pick_device(device)
    settings = load_config(config_path(config), TrainConfig, {"seed": seed, "base": model})
    base = load_model(model)
    with watch.stage("generate and prepare phantoms"):
        ct = phantom_set(out, "CT", CT_SEED + seed, 0, test_cases)
        mri = [
            phantom_set(out, "T2 MRI", T2_SEED + seed, train_cases, test_cases),
            phantom_set(out, "T1 MRI", T1_SEED + seed, train_cases, test_cases),
        ]
    test = [StudyData(dataset, dataset.cases("test")) for dataset in (ct, *mri)]
    with watch.stage("train"), training_bar("adapting to MRI") as shown:
        paths = [str(dataset.folder) for dataset in mri]
        data = settings.data.model_copy(update={"paths": paths})
        run_training(settings.model_copy(update={"data": data}), out / "adapter", chosen, observers=[shown])
    adapted = load_model(str(out / "adapter"))
    methods = [
        StudyMethod("base", base, f"the CT base as shipped, asked by name ({base.lineage})"),
        StudyMethod("adapted", adapted, f"the same base with the adapter file: {adapted.lineage}"),
    ]
    open_gate = StudyMethod(OPEN_GATE, ungated(methods[1].loaded), "what CT would lose without the gate; CT alone")
    with watch.stage("evaluate"), bar("evaluating") as evaluated:
        records, masks = run_study(methods, test, chosen, progress=evaluated)
        records += run_study([open_gate], test[:1], chosen)[0]
    with watch.stage("report"):
        notes = study_notes([*methods, open_gate], test, 0)
        compare_gated(records, masks, methods, methods[1], notes)
        draw_overlays(out / "report", records, masks, "adapted", test)
        save_study(out / "report", records, notes)
        text = ReportText(
            "From CT to MRI: the demo",
            base="base",
            adapted="adapted",
            runs={"adapted": out / "adapter"},
            goals=Goals(mr_gain=0.25, ct_loss=0.02),
            next_commands=NEXT,
            caveats=CAVEATS,
            timings=watch.seconds,
            seed=seed,
        )
        paths_written = report_study(out / "report", out / "report", text)
    for name, seconds in watch.seconds.items():
        console.print(f"{name}: {seconds:.0f} s")
    print(paths_written.markdown.read_text(encoding="utf-8").split("\n## ")[0].strip())
    print(f"\nreport: {paths_written.html}\nadapter: {out / 'adapter' / 'model.safetensors'}")


def phantom_set(out: Path, modality: str, seed: int, train_cases: int, test_cases: int) -> PreparedDataset:
    """Generate phantoms as NIfTI and prepare them as a user's folder would be; the split is by patient."""
    count = train_cases + test_cases
    slug = modality.lower().replace(" ", "_")
    folder = out / "phantoms" / slug
    with bar(f"{modality}: generating") as progress:
        write_phantoms(folder, count=count, modality=modality, seed=seed, workers=2, progress=progress)
    with bar(f"{modality}: preparing") as progress:
        return prepare_folder(
            folder,
            out / "prepared" / slug,
            name=f"phantoms {modality}",
            labels=LABELS,
            test_fraction=test_cases / count,
            val_fraction=0.0,
            seed=seed,
            progress=progress,
        )
