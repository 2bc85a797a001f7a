"""Archives: unpacked as far as needed, and never anywhere else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import tarred, zipped

from adaptmedseg.data import archive as archive_module
from adaptmedseg.data.archive import opened_source, unpack
from adaptmedseg.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in ("set/imagesTr/a.nii", "set/labelsTr/a.nii", "set/imagesTs/b.nii"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 1000)
    return root


def packed(folder: Path, archive: Path) -> Path:
    return zipped(folder, archive) if archive.suffix == ".zip" else tarred(folder, archive)


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tar.bz2", "set.tar.xz"])
def test_wanted_members_are_unpacked_and_cleared(folder: Path, tmp_path: Path, name: str) -> None:
    archive = packed(folder, tmp_path / name)
    with opened_source(archive, wanted=lambda member: "imagesTs" not in member) as root:
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert set(files) == {"set/imagesTr/a.nii", "set/labelsTr/a.nii"}
    assert files["set/imagesTr/a.nii"] == (folder / "set/imagesTr/a.nii").read_bytes()
    assert not root.exists()


def test_what_lies_there_whole_is_kept(folder: Path, tmp_path: Path) -> None:
    archive = packed(folder, tmp_path / "set.zip")
    unpack(archive, tmp_path / "out")
    path = tmp_path / "out/set/imagesTr/a.nii"
    before = path.stat().st_mtime_ns
    (tmp_path / "out/set/labelsTr/a.nii").write_bytes(b"half")
    unpack(archive, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    assert (tmp_path / "out/set/labelsTr/a.nii").read_bytes() == (folder / "set/labelsTr/a.nii").read_bytes()


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tar.bz2", "set.tar.xz"])
def test_truncated_archives_are_told(folder: Path, tmp_path: Path, name: str) -> None:
    archive = packed(folder, tmp_path / name)
    archive.write_bytes(archive.read_bytes()[:-1100] if name.endswith("r") else archive.read_bytes()[:150])
    if name == "set.tar":
        archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"damaged|neither a folder"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_tar_that_ends_with_a_zip_is_still_a_tar(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    with zipfile.ZipFile(tmp_path / "outer" / "inner.zip", "w", zipfile.ZIP_STORED) as file:
        file.writestr("inner.nii", b"x")
    assert zipfile.is_zipfile(tarred(tmp_path / "outer", tmp_path / "set.tar"))
    unpack(tmp_path / "set.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["inner.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_a_zip_come_back_and_changed_ones_are_told(tmp_path: Path, method: int) -> None:
    content = np.random.default_rng(0).integers(0, 9, 3 << 20).astype(np.uint8).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        for name in ("a.nii", "b.nii", "empty.nii"):
            file.writestr(name, b"" if name == "empty.nii" else content)
    unpack(tmp_path / "a.zip", tmp_path / "out", workers=2)
    assert [(tmp_path / "out" / name).read_bytes() for name in ("a.nii", "b.nii", "empty.nii")] == [content] * 2 + [b""]
    changed = bytearray((tmp_path / "a.zip").read_bytes())
    changed[len(changed) // 4] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(changed)
    with pytest.raises(UserError, match=r"damaged archive|larger than stated"):
        unpack(tmp_path / "bad.zip", tmp_path / "other", workers=2)
    assert not (tmp_path / "other" / "a.nii").exists()
    assert not list((tmp_path / "other").rglob("*.partial"))


@pytest.mark.parametrize("name", ["../up.nii", "/root.nii", "a/../../up.nii", "C:/x.nii", "..\\up.nii"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="points outside; do not use this archive"):
        unpack(archive, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.rglob("*.nii")] == []


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (tarfile.SYMTYPE, "holds the link"),
        (tarfile.LNKTYPE, "holds the link"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a device"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, says: str) -> None:
    entry = tarfile.TarInfo("a.nii")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(entry)
    with pytest.raises(UserError, match=says):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.nii"), io.BytesIO())
    with pytest.raises(UserError, match=r"holds 'a\.nii' twice"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_bombs_are_refused_before_the_disk_is_full(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_RATIO_FROM_BYTES", 1 << 20)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/zeros.nii").write_bytes(bytes(8 << 20))
    archive = packed(tmp_path / "in", tmp_path / name)
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.nii"))


def test_archives_larger_than_the_disk_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda _: Usage)
    for name in ("set.zip", "set.tar"):
        with pytest.raises(UserError, match=r"unpacks to .* free; free some space"):
            unpack(packed(folder, tmp_path / name), tmp_path / "out")
