"""Weights by name: the cache, offline use, and a download that goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import FileServer, serving
from small_cases import call

from adaptmedseg.checkpoints import known
from adaptmedseg.checkpoints.known import KNOWN, KnownWeights, fetch
from adaptmedseg.checkpoints.store import load_base, save_base
from adaptmedseg.data.download import Checksum, cache_folder
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import SegVol

CONTENT = bytes(range(256)) * 12_000  # three chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        server.files["/files/weights.bin"] = CONTENT
        yield server


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTMEDSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAPTMEDSEG_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def weights(server: FileServer) -> KnownWeights:
    url = f"{server.address}/files/weights.bin"
    return KnownWeights("tiny", url, "the publisher's page", 3, DIGEST)


def test_a_file_is_fetched_once(weights: KnownWeights, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    of = Checksum.of
    monkeypatch.setattr(Checksum, "of", lambda path, algorithm: hashed.append(path) or of(path, algorithm))
    seen: list[tuple[int, int]] = []
    path = fetch(weights, lambda done, total: seen.append((done, total)))
    assert path == cache_folder() / "tiny" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert json.loads((path.parent / "weights.bin.json").read_text(encoding="utf-8"))["sha256"] == DIGEST
    assert fetch(weights) == path
    assert len(server.asked) == 1
    assert hashed == [path.with_name("weights.bin.partial"), path]  # once at each call
    assert {p.name for p in path.parent.iterdir()} == {"weights.bin", "weights.bin.json"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(weights: KnownWeights, server: FileServer, ranges: bool) -> None:
    server.stop_after, server.ranges = 2_000_000, ranges
    with pytest.raises(UserError, match=r"the connection ended after \d+ of 3072000 bytes; run again"):
        fetch(weights)
    assert not weights.original.exists()
    have = weights.original.with_name("weights.bin.partial").stat().st_size
    assert 0 < have <= 2_000_000
    assert fetch(weights).read_bytes() == CONTENT
    assert server.asked_ranges == [None, f"bytes={have}-"]


def test_what_came_whole_but_was_not_renamed_is_kept(weights: KnownWeights) -> None:
    partial = weights.original.with_name("weights.bin.partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT)
    assert fetch(weights).read_bytes() == CONTENT
    weights.original.unlink()
    partial.write_bytes(CONTENT + b"of another file")
    assert fetch(weights).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_nothing_kept(weights: KnownWeights) -> None:
    wrong = replace(weights, sha256="0" * 64)
    with pytest.raises(UserError, match=r"not the publisher's file \(SHA-256 .*, not SHA-256 000000000000"):
        fetch(wrong)
    assert list(weights.original.parent.iterdir()) == []


@pytest.mark.parametrize("stated", [DIGEST, None])
def test_a_cached_file_is_checked_at_every_load(weights: KnownWeights, stated: str | None) -> None:
    weights = replace(weights, sha256=stated)
    path = fetch(weights)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"SHA-256 is .*delete the file and fetch it again") as error:
        fetch(weights)
    assert str(path) in str(error.value)
    assert ("the publisher's" if stated else "the one in weights.bin.json") in str(error.value)


def test_a_file_put_there_by_hand_is_taken_and_recorded(
    weights: KnownWeights, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = replace(weights, sha256=None)
    monkeypatch.setenv("ADAPTMEDSEG_OFFLINE", "1")
    with pytest.raises(UserError, match="ADAPTMEDSEG_OFFLINE forbids the network") as error:
        fetch(weights)
    assert f"put weights.bin from the publisher's page at {weights.original}" in str(error.value)
    weights.original.parent.mkdir(parents=True)
    weights.original.write_bytes(CONTENT)
    assert fetch(weights) == weights.original
    note = weights.original.with_name("weights.bin.json")
    assert json.loads(note.read_text(encoding="utf-8"))["sha256"] == DIGEST
    assert not server.asked
    note.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged; delete it"):
        fetch(weights)


@pytest.mark.parametrize(("answer", "message"), [(404, "answers 404 Not Found"), (503, "answers 503")])
def test_a_servers_refusal_is_told(weights: KnownWeights, server: FileServer, answer: int, message: str) -> None:
    server.answer = answer
    with pytest.raises(UserError, match=f"{message}.*put weights.bin from"):
        fetch(weights)


def test_no_network_is_told(weights: KnownWeights) -> None:
    nowhere = replace(weights, url="http://127.0.0.1:9/files/weights.bin")
    with pytest.raises(UserError, match=r"cannot be reached .*try again with a network, or put weights.bin"):
        fetch(nowhere)


def test_a_full_disk_is_told(weights: KnownWeights, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(weights)


def test_the_cache_has_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADAPTMEDSEG_CACHE")
    for platform, variable, end in (
        ("linux", "XDG_CACHE_HOME", "adaptmedseg"),
        ("win32", "LOCALAPPDATA", "adaptmedseg"),
    ):
        monkeypatch.setattr("sys.platform", platform)
        monkeypatch.setenv(variable, str(tmp_path))
        assert cache_folder() == tmp_path / end
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "adaptmedseg"


def test_the_table_states_facts_of_a_fixed_revision() -> None:
    for name, entry in KNOWN.items():
        assert name == entry.name
        revision = r"https://huggingface\.co/BAAI/SegVol/resolve/[0-9a-f]{40}/[\w.]+"
        hashed = r"https://dl\.fbaipublicfiles\.com/segment_anything/sam_vit_[blh]_[0-9a-f]{6}\.pth"
        assert re.fullmatch(f"{revision}|{hashed}", entry.url)
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_a_known_base_that_is_not_here_is_told_and_one_that_is_loads(
    tiny_base: SegVol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTMEDSEG_OFFLINE", "1")
    entry = KNOWN["segvol"]
    with pytest.raises(UserError, match="weights convert segvol") as error:
        load_base("segvol")
    assert str(entry.original) in str(error.value)
    for command in (
        ["weights", "convert", "segvol"],
        ["weights", "inspect", "segvol"],
        ["weights", "verify", "segvol"],
    ):
        outcome = call(*command)
        assert outcome.code == 2, outcome
        assert str(entry.original) in outcome.err
        assert len(outcome.err.splitlines()) == 1
    save_base(entry.converted, tiny_base, {"name": "segvol"})
    assert load_base("segvol")[1] == {"name": "segvol"}


def test_a_known_name_is_fetched_and_converted_into_the_cache(
    weights: KnownWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(known.KNOWN, "tiny", weights)
    outcome = call("weights", "convert", "tiny")  # what the server gives is no checkpoint
    assert outcome.code == 2
    assert f"{weights.original}: is no checkpoint" in outcome.err
    assert weights.original.read_bytes() == CONTENT
    assert known.UNKNOWN_LICENCE not in weights.licence
