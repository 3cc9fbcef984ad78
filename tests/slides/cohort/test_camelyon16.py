"""A manifest of CAMELYON16."""

import pytest

from hnm.errors import CohortError
from hnm.slides.annotations import read_annotation
from hnm.slides.cohort.camelyon16 import camelyon16
from hnm.slides.cohort.draft import write_manifest
from hnm.slides.cohort.manifest import read_manifest
from hnm.slides.cohort.outlines import outlined
from tests.support.cohort_folders import asap, box, left_out, touched


@pytest.fixture
def challenge(tmp_path):
    """Ten normal, five tumour and four test slides of CAMELYON16, with the three that its makers
    remark on.
    """
    folder = tmp_path / "c"
    touched(
        folder,
        *(f"training/normal/normal_{n:03d}.tif" for n in (*range(1, 10), 86)),
        *(f"training/tumor/Tumor_{n:03d}.tif" for n in range(1, 6)),
    )
    touched(
        folder,
        *(f"testing/images/test_{n:03d}.tif" for n in (1, 2, 49, 114)),
        "masks/tumor_001_mask.tif",
        "background/x.tif",
    )
    (folder / "testing/reference.csv").write_text(
        "image,type\ntest_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\nTest_049,Tumor,x,y\ntest_114,Tumor,IDC,Macro\n"
    )
    for number in (1, 2, 3, 5):
        (folder / f"training/tumor_{number:03d}.xml").write_text(
            asap(("_0", box(10, 20, 30 + number, 50)))
        )
    for name in ("test_001", "test_114"):
        (folder / f"testing/{name}.xml").write_text(asap(("Tumor", box(1, 2, 3, 4))))
    return folder


def test_camelyon16(challenge, tmp_path):
    draft = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    write_manifest(draft.rows, tmp_path / "out" / "slides.csv")
    entries = {entry.slide_id: entry for entry in read_manifest(tmp_path / "out" / "slides.csv")}
    assert set(entries) == {f"normal_{n:03d}" for n in range(1, 10)} | {
        f"tumor_{n:03d}" for n in range(1, 6)
    } | {"test_001", "test_002", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if int(entry.label)} == {
        f"tumor_{n:03d}" for n in range(1, 6)
    } | {"test_001", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if entry.split == "test"} == {
        "test_001",
        "test_002",
        "test_114",
    }
    validation = [
        int(entries[slide_id].label)
        for slide_id, entry in entries.items()
        if entry.split == "validation"
    ]
    assert (len(validation), sum(validation)) == (6, 2)  # 4 of 9, 2 of 5
    assert {slide_id for slide_id, entry in entries.items() if entry.annotation} == {
        "tumor_001",
        "tumor_002",
        "tumor_003",
        "tumor_005",
        "test_001",
    }
    assert entries["tumor_002"].annotation == "annotations/tumor_002.geojson"
    (region,) = read_annotation(tmp_path / "out" / "annotations" / "tumor_002.geojson")
    assert (region.name, region.geometry.bounds) == ("tumour", (10, 20, 32, 50))
    assert [note.split(":")[0] for note in draft.notes] == [
        "test_114 has no annotation",
        "tumor_004 has no annotation",
    ]
    assert left_out(draft, challenge) == {
        "it holds a metastasis; its makers gave it out again as tumor_111": ["normal_086"],
        "it is a duplicate of another slide of the test set": ["test_049"],
        "slides that are not named normal_, tumor_ or test_ and a number": [
            "background/x.tif",
            "masks/tumor_001_mask.tif",
        ],
    }
    again = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    assert again == draft


def test_camelyon16_without_its_test_slides_is_split_later(challenge, tmp_path):
    draft = camelyon16(challenge / "training", tmp_path, validation_share=0.2, seed=0)
    assert {entry.split for entry in draft.rows} == {None}
    write_manifest(draft.rows, tmp_path / "slides.csv")
    assert (
        (tmp_path / "slides.csv")
        .read_text()
        .startswith(
            "slide_id,path,label,patient_id,annotation\nnormal_001,c/training/normal/normal_001.tif,0,normal_001,\n"
        )
    )


def test_what_is_wrong_with_camelyon16(challenge, tmp_path):
    def message():
        with pytest.raises(CohortError) as caught:
            camelyon16(challenge, tmp_path / "a", validation_share=0.2, seed=0)
        return str(caught.value)

    reference = challenge / "testing" / "reference.csv"
    reference.write_text("test_001,Tumor\ntest_002,Macro\ntest_114,Tumor\ntest_114,Normal\n")
    touched(challenge, "zz/TUMOR_001.tif")
    draft = camelyon16(challenge, tmp_path / "a", validation_share=0.2, seed=0)
    reasons = left_out(draft, challenge)
    assert reasons["reference.csv does not say whether it is Tumor or Normal"] == [
        "testing/images/test_002.tif",
        "testing/images/test_114.tif",
    ]
    assert reasons["another file has the same name, and is taken"] == ["zz/TUMOR_001.tif"]
    assert [entry.slide_id for entry in draft.rows if entry.split == "test"] == ["test_001"]
    reference.unlink()
    assert (
        message()
        == f"{challenge} has test slides but no reference.csv, which has their labels; put it there"
    )
    with pytest.raises(CohortError, match=r"holds no normal_001.tif, tumor_001.tif"):
        camelyon16(challenge / "masks", tmp_path / "a", validation_share=0.2, seed=0)
    for text, words in (
        ("<a", "is no XML of ASAP"),
        (
            '<a><Annotation PartOfGroup="_0"><Coordinate X="1"/></Annotation></a>',
            "is no XML of ASAP: a Coordinate has no Y; fetch it again",
        ),
    ):
        (tmp_path / "b.xml").write_text(text)
        with pytest.raises(CohortError, match=words):
            outlined(tmp_path / "b.xml")
    (tmp_path / "b.json").write_text('{"positive": []}')
    with pytest.raises(
        CohortError,
        match=r"b.json is no annotation of NCRF: it has no list 'negative'; fetch it again",
    ):
        outlined(tmp_path / "b.json")
