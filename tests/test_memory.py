"""Memory first: estimates hold against what is measured, and a full memory leads to humbler ways, announced."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from small_cases import AFFINE, MODALITY, save, small_image
from torch import Tensor

from adaptmedseg.data.headers import VolumeSize, volume_size
from adaptmedseg.data.normalise import normalised_crop
from adaptmedseg.data.registry import modality
from adaptmedseg.data.volume import read_image
from adaptmedseg.errors import UserError
from adaptmedseg.inference.cases import CaseRunner, Products
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.machine import PROC, Free, host_free, readable
from adaptmedseg.inference.memory import (
    NORMALISE,
    READ,
    Footprint,
    Job,
    Step,
    choose_step,
    estimate,
    footprint,
    is_out_of_memory,
    ladder,
)
from adaptmedseg.inference.naming import find_cases
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_file import text_prompt_set
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.models.unet import ReferenceUNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = InferenceSettings(bf16=False, window_batch=4, stitch_on_cpu=False)
VOLUME = VolumeSize((100, 200, 200), 2 * 100 * 200 * 200)
UNKNOWN = Free(None)
MODEL = Footprint(parameters=500 << 20, embedding=6 << 20, encode=300 << 20, decode=150 << 20)
SIZE = (32, 256, 256)


JOB = Job(VOLUME, 3, zoom=True)


def needs(step: Step, job: Job = JOB, on: torch.device = CUDA) -> tuple[int, int]:
    need = estimate(MODEL, SIZE, job, step, on)
    return need.host, need.device


# Headers and estimates --------------------------------------------------------------------


def test_sizes_come_from_headers(tmp_path: Path) -> None:
    image = small_image(0)
    voxels = image.size
    plain = save(tmp_path / "plain.nii.gz", image)
    assert volume_size(plain) == VolumeSize((8, 20, 24), 2 * voxels)
    assert volume_size(save(tmp_path / "four.nii.gz", np.stack([image] * 3, axis=-1))).loaded_bytes == 6 * voxels
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(plain)), str(tmp_path / "case.mha"))
    assert volume_size(tmp_path / "case.mha") == VolumeSize((8, 20, 24), 2 * voxels)
    with pytest.raises(UserError, match="does not exist"):
        volume_size(tmp_path / "none.nii.gz")


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_reading_and_normalising_take_what_is_said(tmp_path: Path, dtype: type) -> None:
    image = np.random.default_rng(0).normal(0, 300, (96, 80, 64)).astype(dtype)
    size = volume_size(save(tmp_path / "scan.nii.gz", image))
    tracemalloc.start()
    volume = read_image(tmp_path / "scan.nii.gz")
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    normalised_crop(volume)
    _, normalising = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for measured, said in ((reading, size.loaded_bytes + READ * size.voxels), (normalising, NORMALISE * size.voxels)):
        assert measured <= 1.1 * said
        assert said <= 1.5 * measured


class Bright(SegVol):
    """Finds the bright voxels, with hardly any memory of its own."""

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        return image

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        return embedding[prompts.image_index, 0] - 0.5


@pytest.mark.parametrize("zoom", [False, True])
def test_a_case_stays_below_its_estimate(tiny_base: SegVol, tmp_path: Path, zoom: bool) -> None:
    if not (PROC / "self" / "clear_refs").exists():
        pytest.skip("this system does not tell the peak of a case")
    shape = (160, 160, 100)
    path = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(0, 300, shape).astype(np.int16))
    loaded = LoadedModel(Bright(tiny_base.config), (64, 64, 64), "smooth", [], frozenset(), {}, "bright")
    products = Products(tmp_path / "out", probabilities=True)
    runner = CaseRunner(Predictor(loaded, CPU), MODALITY, products, zoom=zoom, tell=lambda _: None)
    (case,) = find_cases(path, modality(MODALITY)).cases
    need = estimate(runner.footprint, loaded.size, Job(volume_size(path), 2, zoom, True), runner.steps[0], CPU)
    gc.collect()
    before = int((PROC / "self" / "statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    note = runner.run(case, text_prompt_set(["liver", "spleen"]))
    used = note["peak_memory_mib"]["main memory"] * 2**20 - before
    assert used < need.host


def test_what_takes_more_is_counted_as_more() -> None:
    plain, small = Job(VOLUME, 3), VolumeSize((50, 200, 200), 50 * 200 * 200 * 2)
    step = Step(CUDA, InferenceSettings())
    host, device = needs(step, plain)
    assert needs(step, Job(small, 3)) < (host, device)
    assert needs(step, replace(plain, probabilities=True))[0] > host
    assert needs(step, replace(plain, structures=30))[1] > device
    assert needs(step, replace(plain, zoom=True))[1] > device
    assert needs(Step(CPU, InferenceSettings()), plain, CPU) == (
        needs(Step(CPU, InferenceSettings()), plain, CPU)[0],
        0,
    )
    assert needs(Step(CPU, InferenceSettings()), plain)[0] > needs(Step(CPU, InferenceSettings()), plain, CPU)[0]


def test_every_model_has_a_footprint(tiny_base: SegVol) -> None:
    unet = ReferenceUNet(["liver", "spleen"], (8, 32, 32))
    for model in (tiny_base, unet):
        found = footprint(LoadedModel(model, (8, 32, 32), "smooth", [], frozenset(), {}, ""))
        assert found.parameters == sum(p.numel() * 4 for p in model.parameters())
        assert min(found.embedding, found.encode, found.decode) > 0


# The ladder -------------------------------------------------------------------------------


def test_the_ladder_gives_up_one_thing_after_another() -> None:
    steps = ladder(CUDA, MANY)
    assert [step.said for step in steps] == [
        "",
        "one window at a time",
        "one structure at a time",
        "keeping no embeddings of windows",
        "bfloat16",
        "putting the volume together in main memory",
        "the CPU instead of the graphics processor",
    ]
    devices = [needs(step)[1] for step in steps[:4] + steps[5:]]  # bfloat16 is not in the estimate
    assert devices == sorted(devices, reverse=True)
    assert devices[-1] == 0
    assert [step.said for step in ladder(CPU, InferenceSettings())][1:] == [
        "one structure at a time",
        "keeping no embeddings of windows",
    ]


def test_the_exact_way_never_gives_up_its_numbers() -> None:
    steps = ladder(CUDA, MANY, exact=True)
    assert "bfloat16" not in [step.said for step in steps]
    assert not any(step.settings.bf16 for step in steps)


def test_the_first_step_that_fits_is_taken() -> None:
    steps = ladder(CUDA, MANY)
    table = [needs(step) for step in steps]

    def choose(free: Free) -> int:
        return choose_step(steps, "scan.nii.gz", lambda step: estimate(MODEL, SIZE, Job(VOLUME, 3, True), step, CUDA),
                           lambda device: free if device.type == "cuda" else Free(free.host))  # fmt: skip

    assert choose(Free(None, None)) == 0
    assert choose(Free(table[0][0], table[0][1])) == 0
    assert choose(Free(table[0][0], table[0][1] - 1)) == 1
    assert steps[choose(Free(1 << 50, 0))].device == CPU
    with pytest.raises(UserError) as told:
        choose(Free(100 << 20, 0))
    assert str(told.value) == (
        f"scan.nii.gz: needs about {readable(table[-1][0])} of main memory even with everything given up that can be, "
        "and 100 MiB are free; close other programs, take a larger machine or resample the image"
    )


def test_errors_of_full_memory_are_known() -> None:
    full = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ]
    assert all(is_out_of_memory(error) for error in full)
    assert not any(is_out_of_memory(error) for error in (RuntimeError("shape mismatch"), ValueError("out of memory")))


# What is free -----------------------------------------------------------------------------


def fake_machine(root: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       2000000 kB\nMemAvailable:   1000000 kB\n", encoding="utf-8")
    (proc / "self" / "cgroup").write_text(groups, encoding="utf-8")
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text, encoding="utf-8")
    return proc, cgroup


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    available = 1_000_000 * 1024
    assert host_free(*fake_machine(tmp_path / "none", "", {})) == available
    assert host_free(tmp_path / "nowhere", tmp_path / "nowhere") is None
    unlimited = {"memory.max": "max\n", "memory.current": "5\n"}
    assert host_free(*fake_machine(tmp_path / "max", "0::/\n", unlimited)) == available
    nested = {
        "job/step/memory.max": "max", "job/step/memory.current": "1000",
        "job/memory.max": "50000", "job/memory.current": "30000", "job/memory.stat": "anon 5\ninactive_file 4000\n",
    }  # fmt: skip
    assert host_free(*fake_machine(tmp_path / "v2", "0::/job/step\n", nested)) == 24_000
    first = {"memory/slurm/memory.limit_in_bytes": "70000", "memory/slurm/memory.usage_in_bytes": "20000",
             "memory/memory.limit_in_bytes": str((1 << 63) - 4096), "memory/memory.usage_in_bytes": "1"}  # fmt: skip
    assert host_free(*fake_machine(tmp_path / "v1", "9:cpu:/slurm\n4:memory:/slurm\n", first)) == 50_000
    spent = {"memory.max": "100", "memory.current": "200"}
    assert host_free(*fake_machine(tmp_path / "spent", "0::/\n", spent)) == 0


def test_a_limit_on_the_address_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, cgroup = fake_machine(tmp_path, "", {})
    (proc / "self" / "status").write_text("VmSize:\t  600 kB\nVmHWM:\t  10 kB\n", encoding="utf-8")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000 * 1024, -1))
    assert host_free(proc, cgroup) == 400 * 1024


# Cases ------------------------------------------------------------------------------------


class Hungry(SegVol):
    """Runs out of memory the first times it is asked."""

    left = 0
    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        if self.left:
            self.left -= 1
            raise self.error
        return super().embed(image, modalities)


class Kitchen:
    """A runner over a model that may be hungry, what it told, and one case."""

    def __init__(self, base: SegVol, folder: Path, free: Free = UNKNOWN):
        self.told: list[str] = []
        self.model = Hungry(base.config).eval()
        loaded = LoadedModel(self.model, base.config.spatial_size, "smooth", [], frozenset(), {}, "hungry")
        settings = replace(InferenceSettings(), window_batch=3)
        self.runner = CaseRunner(
            Predictor(loaded, CPU, settings), MODALITY, Products(folder / "out", overwrite=True),
            tell=self.told.append, free=lambda _: free,
        )  # fmt: skip
        (self.case,) = find_cases(save(folder / "scan.nii.gz", small_image(0), AFFINE), modality(MODALITY)).cases

    def run(self) -> dict:
        return self.runner.run(self.case, text_prompt_set(["liver"]))


@pytest.mark.parametrize(
    "error", [Hungry.error, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_a_case_is_tried_again_in_a_humbler_way(
    tiny_base: SegVol, tmp_path: Path, times: int, error: Exception
) -> None:
    kitchen = Kitchen(tiny_base, tmp_path)
    kitchen.model.left, kitchen.model.error = times, error
    note = kitchen.run()
    ways = ["one window at a time", "one structure at a time", "keeping no embeddings of windows"][:times]
    again = [line for line in kitchen.told if "memory is full" in line]
    assert again == [f"{kitchen.case.image}: memory is full; trying again with {way}" for way in ways]
    assert note["memory_given_up"] == ways
    assert note["settings"]["window_batch"] == (1 if times else 3)
    assert kitchen.run()["memory_given_up"] == []  # the next case starts anew


def test_a_case_that_never_fits_is_told(tiny_base: SegVol, tmp_path: Path) -> None:
    kitchen = Kitchen(tiny_base, tmp_path)
    kitchen.model.left = 100
    with pytest.raises(UserError, match=r"scan.nii.gz: memory is full even with everything given up"):
        kitchen.run()
    assert not (tmp_path / "out").exists()
    kitchen.model.error = RuntimeError("a mistake of another kind")
    with pytest.raises(RuntimeError, match="another kind"):
        kitchen.run()


def test_a_case_is_measured_before_it_is_read(
    tiny_base: SegVol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = Kitchen(tiny_base, tmp_path, Free(1 << 10))
    monkeypatch.setattr(Predictor, "set_image", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"scan.nii.gz: needs about .* MiB of main memory .* 0 MiB are free; close"):
        kitchen.run()


def test_short_memory_is_announced(tiny_base: SegVol, tmp_path: Path) -> None:
    kitchen = Kitchen(tiny_base, tmp_path)
    kitchen.runner.zoom = True
    volume = volume_size(kitchen.case.image)
    needed = [
        estimate(kitchen.runner.footprint, tiny_base.config.spatial_size, Job(volume, 1, True), step, CPU).host
        for step in kitchen.runner.steps
    ]
    assert needed == sorted(needed, reverse=True)
    kitchen.runner.free = lambda _: Free(needed[1])
    assert kitchen.run()["memory_given_up"] == ["one window at a time"]
    assert kitchen.told[0] == f"{kitchen.case.image}: memory is short, so it runs with one window at a time"
