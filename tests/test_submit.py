"""`adaptmedseg submit`: scripts, the chain of jobs, and what is refused before anything is written."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import Outcome, call
from training_cases import training_chain

from adaptmedseg.errors import UserError
from adaptmedseg.launch.script import Resources, seconds

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for sbatch that numbers jobs from 11 and notes its arguments in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\necho "$*" >> {folder}/calls\necho $((10 + $(wc -l < {folder}/calls)));\n'
    (folder / "sbatch").write_text(script, encoding="utf-8")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def dry(chain: Path, out: Path, *more: str | Path, config: str | Path | None = None) -> Outcome:
    return call("submit", config or chain / "tiny.yaml", "--out", out, "--dry-run", *more)


def options(script: Path) -> list[str]:
    return re.findall(r"^#SBATCH (.+)$", script.read_text(encoding="utf-8"), flags=re.MULTILINE)


def well_formed(script: Path) -> bool:
    return subprocess.run([shutil.which("bash") or "sh", "-n", str(script)]).returncode == 0


def test_a_script_asks_for_what_was_given(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given_options = ("--gpus", "4", "--nodes", "2", "--time", "1-12", "--mem", "64G", "--cpus", "8", "batch_size=8")
    names = ("--partition", "gpu", "--account", "lab", "--sbatch", "--qos=long")
    outcome = dry(chain, out, *given_options, *names)
    assert outcome.code == 0, outcome
    script = tmp_path / "run.slurm" / "train.sbatch"
    assert script.read_text(encoding="utf-8") in outcome.out
    assert set(options(script)) >= {
        "--time=1-12", "--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=8", "--mem=64G",
        "--partition=gpu", "--account=lab", "--qos=long", "--signal=B:USR1@120", "--requeue", "--open-mode=append",
        "--job-name=tiny-train",
    }  # fmt: skip
    assert well_formed(script)
    assert not out.exists()


def test_the_configuration_is_kept_as_it_was_submitted(chain: Path, tmp_path: Path) -> None:
    outcome = dry(chain, tmp_path / "run", "budget.steps=7", "--seed", "3")
    assert outcome.code == 0, outcome
    kept = yaml.safe_load((tmp_path / "run.slurm" / "config.yaml").read_text(encoding="utf-8"))
    assert (kept["budget"]["steps"], kept["seed"]) == (7, 3)
    assert f"{tmp_path}/run.slurm/config.yaml" in outcome.out


def test_a_cpu_job_asks_for_no_graphics_processor(chain: Path, tmp_path: Path) -> None:
    assert dry(chain, tmp_path / "run", "--cpu", "--time", "2").code == 0
    found = options(tmp_path / "run.slurm" / "train.sbatch")
    assert not [option for option in found if "gpu" in option]
    assert "--signal=B:USR1@30" in found  # a quarter of a short limit


def test_jobs_wait_for_the_success_of_those_before(chain: Path, tmp_path: Path, sbatch: Path) -> None:
    out = tmp_path / "run"
    outcome = call("submit", chain / "tiny.yaml", "--out", out, "--then", "evaluate,report")
    assert outcome.code == 0, outcome
    folder = tmp_path / "run.slurm"
    names = ("train", "evaluate", "report")
    assert outcome.out.splitlines() == [
        f"job {job}: {folder / name}.sbatch" for job, name in zip((11, 12, 13), names, strict=True)
    ]
    chained = "--dependency=afterok:{} --kill-on-invalid-dep=yes"
    assert (sbatch / "calls").read_text(encoding="utf-8").splitlines() == [
        f"--parsable {folder}/train.sbatch",
        f"--parsable {chained.format(11)} {folder}/evaluate.sbatch",
        f"--parsable {chained.format(12)} {folder}/report.sbatch",
    ]
    evaluation = (folder / "evaluate.sbatch").read_text(encoding="utf-8")
    assert f"--model base={chain}/base.safetensors --model trained={out} --data {chain}/data" in evaluation
    assert "--gres=gpu:1" in evaluation
    assert "gpu" not in (folder / "report.sbatch").read_text(encoding="utf-8")
    deaf = [name for name in names if "trap '' USR1 TERM" in (folder / f"{name}.sbatch").read_text(encoding="utf-8")]
    assert deaf == ["train"]  # the others end when they are told to
    assert all(well_formed(folder / f"{name}.sbatch") for name in names)


def test_strategies_make_an_array(chain: Path, tmp_path: Path) -> None:
    data = ("--data", chain / "data", "--then", "evaluate", "--out", tmp_path / "all", "--dry-run")
    outcome = call("submit", "budget.minutes=3", "--strategies", "lora,full", *data)
    assert outcome.code == 0, outcome
    folder = tmp_path / "all.slurm"
    assert "--array=0-1" in options(folder / "train.sbatch")
    command = (folder / "train.sbatch").read_text(encoding="utf-8").splitlines()[-1]
    assert command.endswith(f"--strategies lora,full budget.minutes=3 --data {chain}/data")
    evaluation = (folder / "evaluate.sbatch").read_text(encoding="utf-8")
    assert f"--model base=small --model lora={tmp_path}/all/lora --model full={tmp_path}/all/full" in evaluation


def test_names_with_blanks_and_quotes_survive(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's a run"
    assert dry(chain, out, "--then", "evaluate").code == 0
    for name in ("train", "evaluate"):
        script = out.with_name(f"{out.name}.slurm") / f"{name}.sbatch"
        assert well_formed(script)
        last = script.read_text(encoding="utf-8").splitlines()[-1]
        words = subprocess.run(
            ["bash", "-c", f"set -- {last}; printf '%s\\n' \"$@\""],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert str(out) in words


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--time", "tomorrow"), "--time tomorrow: give hours:minutes:seconds"),
        (("--time", "00:00:00"), "leaves no time"),
        (("--time", "1-"), "--time 1-"),
        (("--gpus", "0"), "--gpus 0: must be 1 or more; give --cpu"),
        (("--gpus", "2", "--cpu"), "--cpu, --gpus 2: give one of them"),
        (("--nodes", "0"), "--nodes 0: must be 1 or more"),
        (("--cpus", "0"), "--cpus 0: must be 1 or more"),
        (("--mem", "much"), "--mem much: give a number with K, M, G or T"),
        (("--sbatch", "qos=long"), "--sbatch 'qos=long'"),
        (("--sbatch", "--qos=a\n#SBATCH --exclusive"), "--sbatch"),
        (("--partition", "a\n#SBATCH --exclusive"), "--partition"),
        (("--base", "fresh:smal"), "base 'fresh:smal': there is no such file"),
        (("--then", "report"), "--then report: give evaluate"),
        (("--folds", "all"), "has no folds, so no fold 0"),
        (("--folds", "0,0"), "--folds 0,0: give 'all' or different numbers"),
        (("--folds", "1", "--fold", "1"), "without --strategies and --fold"),
        (("--strategies", "lora"), "give a configuration or strategies, not both"),
        (("--data", "nowhere"), "nowhere is no prepared data set"),
        (("--base", "lost.safetensors"), "lost.safetensors"),
        (("budget.steps=none",), "budget.steps"),
        (("batch_size=6", "--nodes", "2", "--gpus", "2"), "batch_size 6: 4 processes with compute.accumulate 1"),
        (("precision=fp16", "--cpu"), "precision fp16: needs a graphics processor"),
    ],
)
def test_what_could_only_fail_is_refused_here(
    chain: Path, tmp_path: Path, sbatch: Path, arguments: tuple[str, ...], word: str
) -> None:
    outcome = call("submit", chain / "tiny.yaml", "--out", tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert word in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    assert not (sbatch / "calls").exists()


def test_configurations_that_are_none_are_refused(chain: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [", encoding="utf-8")
    assert "broken.yaml, line 1: not readable as YAML" in dry(chain, tmp_path / "run", config=broken).err
    assert "neither a file nor a shipped one" in dry(chain, tmp_path / "run", config="unheard").err
    unknown = call("submit", "--strategies", "unheard", "--data", chain / "data", "--dry-run")
    assert "configuration 'strategies/unheard'" in unknown.err
    assert "nothing to train" in call("submit", "--dry-run").err


def test_a_finished_run_is_not_trained_again(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("train", chain / "tiny.yaml", "--out", out, "--device", "cpu").code == 0
    assert "is finished" in dry(chain, out).err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    assert "holds another run" in dry(chain, tmp_path / "other").err


def test_without_sbatch_it_says_where_to_go(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = call("submit", chain / "tiny.yaml", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "there is no sbatch on this machine" in outcome.err
    assert "--dry-run" in outcome.err
    assert not list(tmp_path.iterdir())
    assert dry(chain, tmp_path / "run").code == 0


def test_a_refusal_of_slurm_is_passed_on(chain: Path, tmp_path: Path, sbatch: Path) -> None:
    (sbatch / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n", encoding="utf-8"
    )
    outcome = call("submit", chain / "tiny.yaml", "--out", tmp_path / "run", "--partition", "x")
    assert outcome.code == 2
    assert "Slurm refuses it: sbatch: error: invalid partition specified: x" in outcome.err


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("2-0", 172800), ("1-12", 129600), ("1-00:10", 87000)],
)
def test_slurm_reads_times_so(time: str, expected: int) -> None:
    assert seconds(time) == expected


@settings(max_examples=30)
@given(st.integers(1, 10**7))
def test_every_time_can_be_written_in_days(total: int) -> None:
    days, rest = divmod(total, 86400)
    assert seconds(f"{days}-{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}") == total


@settings(max_examples=50)
@given(st.from_regex(r"[0-9:a-z -]{0,8}", fullmatch=True))
def test_other_texts_are_no_times(text: str) -> None:
    """As sbatch: a number, up to two colons, or days, a hyphen and hours."""
    days, hyphen, rest = text.strip().partition("-")
    parts = (rest if hyphen else days).split(":")
    numbers = [*parts, *([days] if hyphen else [])]
    if len(parts) <= 3 and all(part.isdecimal() for part in numbers) and any(map(int, numbers)):
        assert seconds(text) > 0
    else:
        with pytest.raises(UserError, match="--time"):
            seconds(text)


def test_the_lead_is_shorter_than_the_limit() -> None:
    assert [Resources(time).lead for time in ("0:02", "1", "10", "2-0")] == [1, 15, 120, 120]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_committed_scripts_go_on_and_name_nobody(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert well_formed(script)
    assert {"--requeue", "--open-mode=append"} < set(options(script))
    assert re.search(r"--signal=B:USR1@\d+", text)
    assert not re.search(r"/home|/scratch|/work|/tmp|--(account|partition|mail-user)=", "\n".join(options(script)))


def test_committed_scripts_are_few() -> None:
    assert [path.name for path in SCRIPTS] == ["array.sbatch", "cpu_test.sbatch", "train.sbatch"]
