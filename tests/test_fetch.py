"""Fetching published sets: resume, checksums of the publisher's record, and what is said without a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from adaptmedseg.preprocessing import known as known_module
from adaptmedseg.preprocessing.fetch import fetch_set
from adaptmedseg.preprocessing.sets import KNOWN
from adaptmedseg.preprocessing.sets.model import DataSet, Download
from archives import LAYOUTS, zipped
from file_server import FileServer, serving
from small_cases import call

from adaptmedseg.cli import prepare as prepare_module
from adaptmedseg.data.download import Checksum
from adaptmedseg.errors import UserError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("ADAPTMEDSEG_OFFLINE", raising=False)
    with serving() as server:
        yield server


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    LAYOUTS["promise12"](tmp_path / "in")
    return zipped(tmp_path / "in", tmp_path / "packed.zip").read_bytes()


@pytest.fixture
def known(server: FileServer, archive: bytes) -> DataSet:
    """PROMISE12 as if this server were its publisher."""
    base = server.address
    server.files["/files/training_data.zip"] = archive
    entry = {
        "key": "training_data.zip",
        "checksum": f"md5:{hashlib.md5(archive).hexdigest()}",
        "links": {"self": f"{base}/files/training_data.zip"},
    }
    server.files["/record"] = json.dumps({"files": [entry]}).encode()
    file = Download("training_data.zip", f"{base}/files/training_data.zip")
    return replace(KNOWN["promise12"], downloads=(file,), record=f"{base}/record")


def test_a_set_is_fetched_checked_and_kept(known: DataSet, server: FileServer, tmp_path: Path, archive: bytes) -> None:
    said: list[str] = []
    seen: list[tuple[int, int]] = []
    (path,) = fetch_set(known, tmp_path / "down", said.append, lambda *at: seen.append(at))
    assert path.read_bytes() == archive
    assert seen[-1] == (len(archive), len(archive))
    assert "licence as stated by the publisher at https://zenodo.org/records/8026660" in said[0]
    assert said[1] == "Login: none needed."
    note = json.loads(path.with_name("training_data.zip.json").read_text(encoding="utf-8"))
    assert note["publisher"] == f"md5:{hashlib.md5(archive).hexdigest()}"
    asked = len(server.asked)
    assert fetch_set(known, tmp_path / "down", said.append) == [path]
    assert len(server.asked) == asked
    path.write_bytes(archive[:-1])
    with pytest.raises(UserError, match="delete the file and fetch it again"):
        fetch_set(known, tmp_path / "down", said.append)


def test_a_broken_connection_goes_on(known: DataSet, server: FileServer, tmp_path: Path, archive: bytes) -> None:
    fetch_set(replace(known, downloads=()), tmp_path / "warm", print)  # files named by the record alone
    assert (tmp_path / "warm/training_data.zip").read_bytes() == archive
    known = replace(known, record="", downloads=(replace(known.downloads[0], checksum=Checksum("md5", "0" * 32)),))
    server.stop_after = len(archive) // 2
    with pytest.raises(UserError, match=r"the connection ended after \d+ of \d+ bytes; run again"):
        fetch_set(known, tmp_path / "down", print)
    with pytest.raises(UserError, match=r"not the publisher's file \(MD5 .*, not MD5 000000000000…\)"):
        fetch_set(known, tmp_path / "down", print)
    assert server.asked[-1][1] is not None
    assert not (tmp_path / "down/training_data.zip").exists()


def test_without_a_checksum_the_first_file_is_recorded(known: DataSet, server: FileServer, tmp_path: Path) -> None:
    server.files["/record"] = b"no json"
    said: list[str] = []
    (path,) = fetch_set(known, tmp_path, said.append)
    assert any("recorded as they come" in text for text in said)
    path.write_bytes(path.read_bytes() + b"x")
    server.files["/record"] = b"{}"
    with pytest.raises(UserError, match=r"not the one in training_data\.zip\.json"):
        fetch_set(known, tmp_path, said.append)


def test_without_network_it_says_where_to_put_which_file(
    known: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTMEDSEG_OFFLINE", "1")
    place = tmp_path / "down" / "training_data.zip"
    with pytest.raises(UserError) as caught:
        fetch_set(known, tmp_path / "down", print)
    assert f"put training_data.zip from {known.page} at {place} and run again" in str(caught.value)
    with pytest.raises(UserError, match=r"shared drive.*Processed_data_nii.*"):
        fetch_set(KNOWN["saml"], tmp_path / "down", print)
    nowhere = replace(known, record="", downloads=(Download("a.zip", "http://127.0.0.1:9/a.zip"),))
    monkeypatch.delenv("ADAPTMEDSEG_OFFLINE")
    with pytest.raises(UserError, match=r"cannot be reached .* or put a\.zip from"):
        fetch_set(nowhere, tmp_path / "down", print)
    assert not (tmp_path / "down").exists() or not list((tmp_path / "down").glob("*.zip"))


def test_prepare_fetches_and_prepares(known: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (known_module, prepare_module):
        monkeypatch.setitem(module.KNOWN, "promise12", known)
    outcome = call("prepare", "promise12", "--download", "--source", tmp_path / "down", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert outcome.out.index("licence") < outcome.out.index("Fetching")
    assert "4 cases" in outcome.out
