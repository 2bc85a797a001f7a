"""One vocabulary over all data sets."""

from __future__ import annotations

import pytest

from adaptmedseg.data.registry import default_registry, mirror, modality, structure
from adaptmedseg.errors import UserError

NEEDED = """
prostate; peripheral zone; transition zone; bladder; rectum; left femoral head; right femoral head; liver; spleen;
left kidney; right kidney; gallbladder; pancreas; stomach; duodenum; esophagus; aorta; inferior vena cava; colon; lungs;
left adrenal gland; right adrenal gland; brainstem; spinal cord; left parotid gland; right parotid gland; larynx;
mandible; left atrium; left ventricle; right ventricle; myocardium; anterior hippocampus; posterior hippocampus
"""


@pytest.mark.parametrize("name", [name.strip() for name in NEEDED.split(";")])
def test_common_structures_are_known_by_their_canonical_name(name: str) -> None:
    assert structure(name).name == name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("kidney_left", "left kidney"),
        ("Left-Kidney", "left kidney"),
        ("right parotid", "right parotid gland"),
        ("Oesophagus", "esophagus"),
        ("postcava", "inferior vena cava"),
        ("adrenal_gland_right", "right adrenal gland"),
        ("  PZ ", "peripheral zone"),
    ],
)
def test_synonyms_and_spellings(written: str, meant: str) -> None:
    assert structure(written).name == meant


def test_mirrors_are_mutual_and_parts_exist() -> None:
    registry = default_registry()
    for entry in registry.structures:
        assert mirror(mirror(entry.name)) == entry.name
        assert all(registry.knows_structure(part) for part in entry.parts)
    assert mirror("left kidney") == "right kidney"
    assert mirror("left ventricle") == "left ventricle"
    assert structure("prostate").parts == ("peripheral zone", "transition zone")


def test_a_whole_is_covered_by_its_parts_and_by_nothing_less() -> None:
    registry = default_registry()
    zones = ("peripheral zone", "transition zone")
    assert registry.covering("whole gland", zones) == zones
    assert registry.covering("prostate", ("prostate", *zones)) == ("prostate",)
    assert registry.covering("prostate", zones[:1]) is None
    assert registry.covering("liver", zones) is None
    assert registry.covering("whole tumour", ("necrotic core", "oedema", "enhancing tumour")) is not None


def test_modalities_have_a_family() -> None:
    assert (modality("ct").name, modality("ct").family) == ("CT", "CT")
    for written, meant in (("T2", "T2 MRI"), ("t1-mri", "T1 MRI"), ("LGE", "LGE MRI"), ("cine", "cine MRI")):
        assert (modality(written).name, modality(written).family) == (meant, "MR")


def test_unknown_names_come_with_the_closest() -> None:
    with pytest.raises(UserError, match=r"'livr' \(closest: liver"):
        structure("livr")
    with pytest.raises(UserError, match="Unknown modality 'T3'"):
        modality("T3")


def test_a_registry_can_be_extended_without_changing_the_shipped_one() -> None:
    extended = default_registry().extended({"zonule": {"synonyms": ["zon"]}, "liver": {}})
    assert extended.structure("ZON").name == "zonule"
    assert not default_registry().knows_structure("zonule")
    with pytest.raises(UserError, match="clash"):
        default_registry().extended({"zonule": {"synonyms": ["liver"]}})
