"""Small data sets in the layouts that their publishers use, for tests of the readers."""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from scipy import sparse
from test_dicom import write_slices

SHAPE = (12, 10, 6)
AFFINE = np.array([[-0.6, 0.0, 0.0, 20.0], [0.0, -0.6, 0.0, 30.0], [0.0, 0.0, 3.0, -9.0], [0.0, 0.0, 0.0, 1.0]])


def image_of(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Noise, int16 (x, y, z)."""
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)


def labels_of(*values: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """One block of ten voxels a value, side by side, uint8 (x, y, z)."""
    labels = np.zeros(shape, np.uint8)
    flat = labels[1:-1, 2:-2, 1:-1].reshape(-1).copy()
    for number, value in enumerate(values):
        flat[10 * number : 10 * number + 10] = value
    labels[1:-1, 2:-2, 1:-1] = flat.reshape(labels[1:-1, 2:-2, 1:-1].shape)
    return labels


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def itk(path: Path, array: np.ndarray) -> Path:
    """Write an (x, y, z) array by its suffix: .mhd with its .raw, .nrrd, .tiff, .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose())), str(path))
    return path


def ppm(path: Path, picture: np.ndarray) -> Path:
    """Write (rows, columns) or (rows, columns, 3) as PGM or PPM, packed where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = picture.shape[:2]
    content = b"P%d\n# drawn\n%d %d\n255\n" % (6 if picture.ndim == 3 else 5, columns, rows) + picture.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def msd_prostate(root: Path, count: int = 4) -> None:
    for number in range(count):
        both = np.stack([image_of(number), image_of(100 + number)], axis=-1)
        nifti(root / f"Task05_Prostate/imagesTr/prostate_{number:02}.nii.gz", both)
        nifti(root / f"Task05_Prostate/labelsTr/prostate_{number:02}.nii.gz", labels_of(1, 2))
    nifti(root / "Task05_Prostate/imagesTs/prostate_47.nii.gz", np.stack([image_of(9), image_of(10)], axis=-1))
    described = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (root / "Task05_Prostate/dataset.json").write_text(json.dumps(described), encoding="utf-8")


def promise12(root: Path, count: int = 4) -> None:
    for number in range(count):
        itk(root / f"training_data/Case{number:02}.mhd", image_of(number))
        itk(root / f"training_data/Case{number:02}_segmentation.mhd", labels_of(1))
    itk(root / "test_data/Case00.mhd", image_of(50))


def saml(root: Path, count: int = 2) -> None:
    for place, site in enumerate(("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")):
        for number in range(count):
            word = "Segmentation" if number % 2 else "segmentation"
            nifti(root / f"Processed_data_nii/{site}/Case{number:02}.nii.gz", image_of(10 * place + number))
            nifti(root / f"Processed_data_nii/{site}/Case{number:02}_{word}.nii.gz", labels_of(1, 2))


def t2w_prostate(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        itk(root / f"prostate_dataset/T2_IMAGES/P_{number:03}.tiff", image_of(number).astype(np.uint16))
        itk(root / f"prostate_dataset/LABELS/P_{number:03}_SEG.tiff", labels_of(1, 2))


def flare22(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        nifti(root / f"images/FLARE22_Tr_{number:04}_0000.nii.gz", image_of(number))
        nifti(root / f"labels/FLARE22_Tr_{number:04}.nii.gz", labels_of(1, 2, 13))


def amos22(root: Path) -> None:
    for number in (1, 500, 507, 600):
        nifti(root / f"amos22/imagesTr/amos_{number:04}.nii.gz", image_of(number))
        nifti(root / f"amos22/labelsTr/amos_{number:04}.nii.gz", labels_of(1, 2, 15))
    nifti(root / "amos22/imagesTs/amos_0009.nii.gz", image_of(9))
    (root / "amos22/dataset.json").write_text(json.dumps({"modality": {"0": "CT"}}), encoding="utf-8")


def chaos(root: Path, count: int = 2) -> None:
    """Slices whose names count against the position, a series UID of its own each, pictures named otherwise."""
    for number in range(1, count + 1):
        for folder, value, seed in (
            (f"CT/{number}", 255, 1),
            (f"MR/{number}/T2SPIR", 63, 2),
            (f"MR/{number}/T1DUAL", 126, 3),
        ):
            base = root / "Train_Sets" / folder
            phases = ("InPhase", "OutPhase") if folder.endswith("DUAL") else ("",)
            for phase_number, phase in enumerate(phases):
                _chaos_series(base / "DICOM_anon" / phase, image_of(10 * number + seed + 5 * phase_number))
            ground = np.zeros(SHAPE, np.uint8)
            ground[2:6, 3:7, 0] = value  # in the lowest slice alone, so that a wrong order shows
            for z in range(SHAPE[2]):
                itk(base / f"Ground/img{SHAPE[2] - z:03}.png", ground[:, :, z])


def _chaos_series(folder: Path, array: np.ndarray) -> None:
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])
    names = [f"IMG-0004-{SHAPE[2] - z:05}.dcm" for z in range(SHAPE[2])]
    write_slices(
        folder, array, affine, names=names, single={z: {"0020|000e": f"1.2.3.{z + 1}"} for z in range(SHAPE[2])}
    )


def brats2021(root: Path, count: int = 4) -> None:
    for number in range(count):
        stem = f"BraTS2021_{number:05}"
        for place, contrast in enumerate(("t1", "t1ce", "t2", "flair")):
            nifti(root / stem / f"{stem}_{contrast}.nii.gz", image_of(10 * number + place))
        nifti(root / stem / f"{stem}_seg.nii.gz", labels_of(1, 2) if number == 0 else labels_of(1, 2, 4))


def m3d_seg(root: Path) -> None:
    lists: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for place, case in enumerate(("amos_0001", "amos_0507", "c", "d")):
        folder = root / "0009" / case
        folder.mkdir(parents=True)
        np.save(folder / "image.npy", image_of(place, (1, 8, 6, 4)).astype(np.float32))
        masks = np.zeros((2, 8, 6, 4), np.int32)
        masks[0, 1:5, 2:4, 1:3] = 1
        masks[1, 3:6, 2:4, 1:3] = 1  # overlaps the first
        name = f"mask_{masks.shape}.npz"
        sparse.save_npz(folder / name, sparse.csr_matrix(masks.reshape(2, -1)))
        item = {"image": f"/elsewhere/{case}/image.npy", "label": f"/elsewhere/{case}/{name}"}
        lists["test" if case == "d" else "train"].append(item)
    described = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "liver tumour"}, **lists}
    (root / "0009/0009.json").write_text(json.dumps(described), encoding="utf-8")


def nnunet(root: Path, count: int = 4) -> None:
    folder = root / "Dataset005_Prostate"
    for number in range(count):
        for channel in range(2):
            nifti(folder / f"imagesTr/Pro_{number:03}_{channel:04}.nii.gz", image_of(10 * number + channel))
        nifti(folder / f"labelsTr/Pro_{number:03}.nii.gz", labels_of(1, 2, 3) if number == 0 else labels_of(1, 2))
    labels = {"background": 0, "prostate": [1, 2], "transition zone": 2, "ignore": 3}
    described = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def msd(root: Path, count: int = 4) -> None:
    for number in range(count):
        nifti(root / f"Task04_Hippocampus/imagesTr/hippocampus_{number:03}.nii.gz", image_of(number))
        nifti(root / f"Task04_Hippocampus/labelsTr/hippocampus_{number:03}.nii.gz", labels_of(1, 2))
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    (root / "Task04_Hippocampus/dataset.json").write_text(json.dumps(described), encoding="utf-8")


def acdc(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        for frame in (1, 12):
            stem = root / f"patient{number:03}/patient{number:03}_frame{frame:02}"
            nifti(Path(f"{stem}.nii.gz"), image_of(100 * number + frame))
            nifti(Path(f"{stem}_gt.nii.gz"), labels_of(1, 2, 3))
        nifti(root / f"patient{number:03}/patient{number:03}_4d.nii.gz", image_of(number, (*SHAPE, 2)))


def left_atrium(root: Path, count: int = 4) -> None:
    for number in range(count):
        itk(root / f"Training Set/P{number}AB/lgemri.nrrd", image_of(number).astype(np.uint8))
        itk(root / f"Training Set/P{number}AB/laendo.nrrd", labels_of(255 if number % 2 else 1))


def synapse(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        nifti(root / f"Training/img/img{number:04}.nii.gz", image_of(number))
        nifti(root / f"Training/label/label{number:04}.nii.gz", labels_of(1, 10, 13))
    nifti(root / "Testing/img/img0061.nii.gz", image_of(61))


def isles2022(root: Path, count: int = 4) -> None:
    for number in range(1, count + 1):
        name, base = f"sub-strokecase{number:04}", root / "ISLES-2022"
        for place, contrast in enumerate(("dwi", "adc")):
            file = base / name / f"ses-0001/dwi/{name}_ses-0001_{contrast}.nii.gz"
            nifti(file, image_of(10 * number + place))
        fine = AFFINE @ np.diag([0.5, 0.5, 1.0, 1.0])
        flair = base / name / f"ses-0001/anat/{name}_ses-0001_FLAIR.nii.gz"
        nifti(flair, image_of(10 * number + 2, (24, 20, 6)), fine)
        lesion = labels_of(1) if number > 1 else labels_of()
        nifti(base / f"derivatives/{name}/ses-0001/{name}_ses-0001_msk.nii.gz", lesion)


def stare(root: Path) -> None:
    rng = np.random.default_rng(0)
    for number in (1, 2, 44, 77):
        ppm(root / f"stare-images/im{number:04}.ppm.gz", rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))
        for annotator, width in (("ah", 2), ("vk", 3)):
            drawn = np.zeros((20, 30), np.uint8)
            drawn[5 : 5 + width, 3:13] = 255
            ppm(root / f"labels-{annotator}/im{number:04}.{annotator}.ppm.gz", drawn)
    ppm(root / "stare-images/im0300.ppm.gz", rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "msd-prostate": msd_prostate,
    "promise12": promise12,
    "saml": saml,
    "t2w-prostate": t2w_prostate,
    "flare22": flare22,
    "amos22": amos22,
    "chaos": chaos,
    "brats2021": brats2021,
    "m3d-seg": m3d_seg,
    "nnunet": nnunet,
    "msd": msd,
    "acdc": acdc,
    "left-atrium-2018": left_atrium,
    "synapse": synapse,
    "isles2022": isles2022,
    "stare": stare,
}


def zipped(folder: Path, archive: Path) -> Path:
    """Pack a folder's contents as .zip."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def tarred(folder: Path, archive: Path) -> Path:
    """Pack a folder's contents as .tar, .tar.gz, .tar.bz2 or .tar.xz."""
    kind = archive.suffix[1:] if archive.suffix != ".tar" else ""
    with tarfile.open(archive, f"w:{kind}") as file:
        for path in sorted(folder.iterdir()):
            file.add(path, path.name)
    return archive
