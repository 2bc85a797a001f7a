"""The test before training: real processes that meet, or say who is missing, different, deaf or in the wrong place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from adaptmedseg.errors import UserError
from adaptmedseg.launch.address import broken_links
from adaptmedseg.launch.deadline import FAILED_EXIT
from adaptmedseg.launch.facts import Facts, contents, differences
from adaptmedseg.launch.meeting import Meeting, Place, ToldByFirstError
from adaptmedseg.launch.smoke import place_of

FORK = multiprocessing.get_context("fork")  # importing PyTorch anew would take longer than the meeting
NOBODYS = "192.0.2.1"  # kept for documentation (RFC 5737): no machine has it
ALIKE = {"torch": "2.9", "configs/a.yaml": "ab" * 32}


def places(count: int, address: str = "127.0.0.1", seconds: float = 20, **changes: object) -> list[Place]:
    """`count` processes that are to meet at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    hosts = [f"n{rank + 1}" for rank in range(count)]
    first = Place(0, count, 0, address, port, "gloo", hosts, seconds)
    return [replace(first, rank=rank, **changes) for rank in range(count)]


def _attend(place: Place, said: Connection) -> None:
    try:
        said.send(Meeting(place).hold([]))
    except ToldByFirstError:
        said.send("told")
    except UserError as error:
        said.send(f"error: {error}")
    said.close()
    os._exit(0)  # backends in the middle of a failed meeting would keep the process


def start(place: Place) -> tuple[BaseProcess, Connection]:
    mine, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_attend, args=(place, its), daemon=True)
    process.start()
    its.close()
    return process, mine


def meet(*attending: Place) -> list[str]:
    """What each process has to say at the end."""
    started = [start(place) for place in attending]
    words = [said.recv() for _, said in started]
    for process, _ in started:
        process.join()
    return words


def test_processes_that_all_come_are_told_so() -> None:
    words = meet(*places(3))
    assert all("3 processes on 1 host are alike and reach each other over gloo (4 MiB" in word for word in words)


def test_a_rank_that_never_comes_is_named_with_its_host() -> None:
    first, _, third, _ = places(4, seconds=4)
    words = meet(first, third)
    assert words == ["error: rank 1 (on n2) never arrived\nrank 3 (on n4) never arrived", "told"]


def test_a_first_rank_that_never_comes() -> None:
    [word] = meet(places(2, seconds=2)[1])
    assert "rank 0 did not answer at 127.0.0.1, port" in word
    assert "(connection refused)" in word


def test_a_master_address_of_another_machine() -> None:
    first, second = meet(*places(2, NOBODYS, seconds=3))
    host = socket.gethostname()
    assert first.startswith(f"error: the master address {NOBODYS} ({NOBODYS}) is not {host}'s, where rank 0 runs")
    assert f"rank 0 did not answer at {NOBODYS}" in second


def test_a_master_address_that_nobody_knows() -> None:
    words = meet(*places(2, "no-such-host.invalid", seconds=2))
    assert all("the master address no-such-host.invalid is unknown on " in word for word in words)


def test_a_port_that_another_program_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        [word] = meet(replace(places(1)[0], port=port))
    assert word == f"error: port {port} is taken on {socket.gethostname()} by another program; choose another port"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test wants missing")
def test_a_graphics_processor_that_is_not_there() -> None:
    first, second = meet(*places(2, backend="nccl", local_rank=1))
    assert "rank 0 on " in first
    assert "rank 1 on " in first
    assert "needs graphics processor 1 and there are 0 here (numbered from 0)" in first
    assert second == "told"


def test_a_first_rank_that_dies_on_the_way() -> None:
    first, second, _ = places(3, seconds=6)
    process, _ = start(first)
    other, said = start(second)
    time.sleep(1)  # both wait for the third by now
    process.kill()
    assert said.recv().startswith("error: rank 0 (on n1) stopped answering")
    other.join()


def test_differing_versions_and_files_are_named_with_both_values() -> None:
    everyone = {0: Facts("n1", ALIKE), 1: Facts("n1", ALIKE), 2: Facts("n2", ALIKE | {"torch": "2.8"})}
    assert differences(everyone) == ["torch differs: 2.8 on n2 (rank 2), 2.9 on n1 (rank 0)"]
    everyone[2] = Facts("n2", ALIKE | {"configs/a.yaml": "missing"})
    assert differences(everyone) == [
        "configs/a.yaml differs: missing on n2 (rank 2), abababababababababababab on n1 (rank 0)"
    ]
    assert differences({0: Facts("n1", {"a": "missing"})}) == ["a is missing on n1 (rank 0)"]
    assert differences({0: everyone[0], 1: everyone[1]}) == []


def test_files_and_prepared_sets_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    file, manifest = tmp_path / "a.yaml", tmp_path / "set" / "manifest.json"
    for path in (file, manifest):
        path.write_text("same", encoding="utf-8")
    found = contents([file, tmp_path / "set", tmp_path / "nothing"])
    assert found[str(file)] == found[str(tmp_path / "set")] != "missing"
    assert found[str(tmp_path / "nothing")] == "missing"
    manifest.write_text("other", encoding="utf-8")
    assert contents([tmp_path / "set"])[str(tmp_path / "set")] != found[str(file)]


def test_a_broken_link_names_both_hosts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        everyone = {
            0: Facts("n1", {}, address="127.0.0.1", port=port),
            1: Facts("n2", {}, address="127.0.0.1", port=port),
        }
        assert broken_links(0, everyone) == []
    assert broken_links(0, everyone) == ["n1 (rank 0) cannot reach n2 (rank 1) at 127.0.0.1: connection refused"]


@pytest.mark.parametrize(
    ("wait", "code"), [("time.sleep(60)", FAILED_EXIT), ("ctypes.PyDLL(None).sleep(60)", -signal.SIGALRM)]
)
def test_it_ends_whatever_a_library_does(wait: str, code: int) -> None:
    """The second wait is in foreign code that never lets Python run."""
    script = (
        f"import ctypes, time; from adaptmedseg.launch.deadline import end_at_all_costs as end; end(0.2, 1); {wait}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == code
    assert ("rank 1 on" in done.stderr and "hung" in done.stderr) == (code == FAILED_EXIT)


@pytest.mark.parametrize(("change", "word"), [({"RANK": "x"}, "whole numbers"), ({"MASTER_PORT": None}, "MASTER_PORT")])
def test_it_says_what_a_launcher_left_out(change: dict[str, str | None], word: str) -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "20000"}
    assert place_of(given, "gloo", "n1,n2", 30.0) == Place(1, 2, 0, "n1", 20000, "gloo", ["n1", "n2"], 30.0)
    beside = place_of(given | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, "gloo", "", 30.0)
    assert beside.port == 20001  # torchrun's own store has the other one
    wrong = {key: value for key, value in (given | change).items() if value is not None}
    with pytest.raises(UserError, match=word):
        place_of(wrong, "gloo", "", 30.0)
