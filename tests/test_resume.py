"""Preparing that is interrupted: killed, stopped by a full disk, started again; always the same bytes in the end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adaptmedseg.preprocessing import run as run_module
from adaptmedseg.preprocessing.folder import prepare_folder
from adaptmedseg.preprocessing.known import prepare_set
from archives import LAYOUTS, image_of, itk, zipped
from small_cases import call

from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError

KILLED = """
import sys, time
from adaptmedseg.preprocessing import run
from adaptmedseg.preprocessing.known import prepare_set
write, calls = run.write_case, []
def slow(*arguments):
    calls.append(1)
    if len(calls) > 2:
        open(sys.argv[3], "w").close()
        time.sleep(60)
    return write(*arguments)
run.write_case = slow
prepare_set("promise12", sys.argv[1], sys.argv[2])
"""


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    LAYOUTS["promise12"](tmp_path / "in")
    return zipped(tmp_path / "in", tmp_path / "training_data.zip")


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    prepare_set("promise12", source, tmp_path / "whole")
    return content(tmp_path / "whole")


def test_twice_and_with_two_workers_the_bytes_are_the_same(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    prepare_set("promise12", source, tmp_path / "again", workers=2)
    assert content(tmp_path / "again") == whole


def test_a_killed_run_goes_on_where_it_stopped(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flag = tmp_path / "out", tmp_path / "third"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(source), str(out), str(flag)])
    for _ in range(600):
        if flag.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert flag.exists()
    assert not out.exists()
    written = []
    write = run_module.write_case
    monkeypatch.setattr(run_module, "write_case", lambda *a: (written.append(a[0].name), write(*a))[1])
    prepare_set("promise12", source, out)
    assert written == ["Case02", "Case03"]
    assert content(out) == whole
    assert not (tmp_path / "out.unfinished").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_case_that_changed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["promise12"](tmp_path / "in")
    out = tmp_path / "out"
    write = run_module.write_case

    def full_at_the_third(folder: Path, *arguments):
        if folder.name == "Case02":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, *arguments)

    monkeypatch.setattr(run_module, "write_case", full_at_the_third)
    outcome = call("prepare", "promise12", "--source", tmp_path / "in", "--out", out)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome
    assert "disk is full or a limit on sizes is reached; free some space and run again; the " in outcome.err
    assert "finished cases are kept in out.unfinished" in outcome.err
    assert not out.exists()
    itk(tmp_path / "in/training_data/Case00.mhd", image_of(77))
    written = []
    monkeypatch.setattr(run_module, "write_case", lambda *a: (written.append(a[0].name), write(*a))[1])
    prepare_set("promise12", tmp_path / "in", out)
    assert {"Case00", "Case02"} <= set(written) <= {"Case00", "Case02", "Case03"}  # Case01 is kept
    fresh = prepare_set("promise12", tmp_path / "in", tmp_path / "fresh")
    assert content(out) == content(fresh.folder)


def test_finished_cases_of_other_bits_or_headers_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of structures is that of bits, and a header's spacing is not in the file of voxels."""
    LAYOUTS["promise12"](tmp_path / "in")
    source = tmp_path / "in" / "training_data"
    names = {1: "prostate", 2: "bladder"}
    turned = dict(reversed(names.items()))
    write = run_module.write_case

    def full(folder: Path, *arguments):
        if folder.name != "Case00":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, *arguments)

    def prepare(out: Path, labels: dict[int, str]) -> dict[str, bytes]:
        return content(prepare_folder(source, out, name="x", modality="T2", labels=labels, val_fraction=0).folder)

    monkeypatch.setattr(run_module, "write_case", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare(tmp_path / "out", names)
    assert (tmp_path / "out.unfinished" / "cases" / "Case00").is_dir()
    monkeypatch.setattr(run_module, "write_case", write)
    assert prepare(tmp_path / "out", turned) == prepare(tmp_path / "fresh", turned)

    monkeypatch.setattr(run_module, "write_case", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare(tmp_path / "moved", names)
    for header in source.glob("Case00*.mhd"):
        header.write_text(
            header.read_text(encoding="utf-8").replace("ElementSpacing = ", "ElementSpacing = 1"), encoding="utf-8"
        )
    monkeypatch.setattr(run_module, "write_case", write)
    assert prepare(tmp_path / "moved", names) == prepare(tmp_path / "fresh2", names)


def test_a_second_start_leaves_the_first_ones_work_alone(tmp_path: Path) -> None:
    LAYOUTS["promise12"](tmp_path / "in")
    partial, working = tmp_path / "out.partial", tmp_path / "out.unfinished" / "new" / "Case00"
    partial.mkdir()
    working.mkdir(parents=True)
    (partial / ".writing").write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    outcome = call("prepare", "promise12", "--source", tmp_path / "in", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "is being written by process" in outcome.err
    assert working.is_dir()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
def test_a_limit_on_file_sizes_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    LAYOUTS["promise12"](tmp_path / "in")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)); "
        "from adaptmedseg.cli.main import run; run()"
    )
    command = ["prepare", "promise12", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "the disk is full or a limit on sizes is reached; free some space and run again" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_finished_set_can_be_opened_without_this_code(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    dataset = PreparedDataset.open(tmp_path / "whole")
    assert dataset.manifest["left_out"] == []
    assert dataset.manifest["publisher"].endswith("8026660")
    assert dataset.cases()[0].sources["image"]["path"] == "training_data/Case00.mhd"
