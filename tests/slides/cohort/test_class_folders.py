"""A manifest of one folder a class, and what lies in folders."""

import hashlib
import os
from pathlib import Path

import pytest

from hnm.errors import CohortError
from hnm.slides.cohort.class_folders import directory
from hnm.slides.cohort.draft import write_manifest
from hnm.slides.cohort.manifest import read_manifest
from hnm.slides.cohort.slide_names import slide_ids_of
from tests.support.cohort_folders import left_out, touched


def test_one_folder_a_class(tmp_path):
    touched(
        tmp_path,
        "d/tumour/a.svs",
        "d/tumour/deep/b.ndpi",
        "d/healthy/c.mrxs",
        "d/healthy/c/Data0000.dat",
        "d/odd/series/1.dcm",
        "d/odd/series/2.dcm",
    )
    draft = directory(tmp_path / "d", positive="tumour")
    assert [
        (entry.slide_id, entry.path.removeprefix(f"{tmp_path}/d/"), int(entry.label))
        for entry in draft.rows
    ] == [
        ("c", "healthy/c.mrxs", 0),
        ("series", "odd/series/1.dcm", 0),
        ("a", "tumour/a.svs", 1),
        ("b", "tumour/deep/b.ndpi", 1),
    ]
    with pytest.raises(
        CohortError, match=r"d has no folder 'cancer'; its folders are healthy, odd, tumour"
    ):
        directory(tmp_path / "d", positive="cancer")
    touched(tmp_path, "empty/x/readme.txt")
    with pytest.raises(CohortError, match=r"empty holds no slides \(.bif, .czi"):
        directory(tmp_path / "empty", positive="x")


NAMES = [
    "Case 1 (2).svs",
    "Übersicht.svs",
    "样本.svs",
    "[a].svs",
    "a.svs",
    "A.ndpi",
    "deep/a.svs",
    "x.y.svs",
    "-b.svs",
    "tab\tc.svs",
    "NA.svs",
    "é.svs",
]


def test_names_become_ids_as_predict_makes_them(tmp_path):
    touched(tmp_path / "d", *(f"x/{name}" for name in NAMES), "y/n.svs")
    draft = directory(tmp_path / "d", positive="x")
    ids = {entry.path: entry.slide_id for entry in draft.rows}
    paths = [str(tmp_path / "d" / "x" / name) for name in NAMES if "\t" not in name]
    assert {path: slide_id for slide_id, path in slide_ids_of(paths).items()} == {
        path: ids[path] for path in paths
    }
    short = {Path(path).name: slide_id for path, slide_id in ids.items()}
    assert (short["Case 1 (2).svs"], short["x.y.svs"], short["-b.svs"], short["NA.svs"]) == (
        "Case_1__2_",
        "x.y",
        "b",
        "NA",
    )
    digest = hashlib.sha256("样本.svs".encode()).hexdigest()[:8]
    assert short["样本.svs"] == f"slide-{digest}"  # wherever the file lies
    assert left_out(draft, tmp_path) == {
        "its path is no UTF-8 of one line of at most 4096 characters": ["d/x/tab\tc.svs"]
    }
    write_manifest(draft.rows, tmp_path / "slides.csv")
    read = read_manifest(tmp_path / "slides.csv")
    assert {str(tmp_path / entry.path): entry.slide_id for entry in read} == ids and len(
        {i.casefold() for i in ids.values()}
    ) == len(NAMES)


def test_what_lies_in_a_folder_is_a_slide_or_is_counted(tmp_path):
    folder = tmp_path / "d"
    touched(
        folder,
        "x/a.svs",
        "x/._a.svs",
        "x/.DS_Store",
        "x/Thumbs.db",
        "x/.hidden/b.svs",
        "x/__MACOSX/c.svs",
        "x/m.mrxs",
        "x/m/Data0000.dat",
        "x/notes",
    )
    touched(
        folder,
        "y/n.svs",
        "y/p.jpg",
        "y/q.JPG",
        "lonely.svs",
        "readme.txt",
        ".git/z.svs",
        "../elsewhere/t.svs",
        "../shared/s.svs",
    )
    for name, content in {
        "b.btf": b"MM\0+xx",
        "q.qptiff": b"II*\0xx",
        "z.btf": b"",
        "1.2.840.5": b"\0" * 128 + b"DICM",
    }.items():
        (folder / "y" / name).write_bytes(content)
    (folder / "x" / "linked").symlink_to("../../elsewhere")
    (folder / "x" / "deep").symlink_to("../..")  # leads back to where the class lies
    (folder / "x" / "gone.svs").symlink_to("nowhere.svs")
    for of_class in "xy":
        (folder / of_class / "both.svs").symlink_to("../../shared/s.svs")
    (folder / "x" / "again.svs").symlink_to("a.svs")
    draft = directory(folder, positive="x")
    assert {(entry.slide_id, int(entry.label)) for entry in draft.rows} == {
        ("a", 1), ("t", 1), ("m", 1), ("n", 0), ("b", 0), ("q", 0), ("y", 0),
    }  # fmt: skip
    reasons = left_out(draft, folder)
    assert reasons["it lies in a folder of label 0 and in one of label 1"]
    assert reasons["slides beside the folders of the classes, which have no label"] == [
        "lonely.svs"
    ]
    assert reasons["links to folders that are looked into already, or that they lie in"] == [
        "x/deep"
    ]
    assert "x/gone.svs" in reasons["links that lead nowhere, and no regular files"]
    assert {"x/.DS_Store", "x/Thumbs.db", ".git"} <= set(
        reasons["hidden files and files of the system"]
    )
    assert "x/._a.svs" in reasons["files that macOS leaves beside others (AppleDouble)"]
    assert {"x/.hidden", "x/__MACOSX"} <= set(reasons["hidden folders and folders of the system"])
    assert {"y/p.jpg", "y/q.JPG"} <= set(reasons["hnm reads no slides of the suffix .jpg"])
    assert (
        "y/z.btf" in reasons["hnm reads no slides of the suffix .btf"]
        and "x/notes" in reasons["hnm reads no slides of the suffix none"]
    )
    assert not any("Data0000" in name for names in reasons.values() for name in names)


def dicom(path, uid, before=b""):
    """A file with DICOM's first bytes, elements `before`, and the UID of its series."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"\0" * 128 + b"DICM" + before
    path.write_bytes(head + b"\x20\0\x0e\0UI" + len(value).to_bytes(2, "little") + value)


ITEM = b"\x20\0\x0e\0UI\x04\x009.9\0"


OPEN = (
    b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff"
    + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    + ITEM
    + b"\xfe\xff\x0d\xe0\0\0\0\0"
    + b"\xfe\xff\xdd\xe0\0\0\0\0"
)


CLOSED = (
    b"\x08\0\x15\x11SQ\0\0"
    + (8 + len(ITEM)).to_bytes(4, "little")
    + b"\xfe\xff\0\xe0"
    + len(ITEM).to_bytes(4, "little")
    + ITEM
)


@pytest.mark.parametrize("before", [b"", OPEN, CLOSED, b"\x08\0\x05\0CS\x02\0AB"])
def test_each_series_of_dicom_in_a_folder_is_a_slide(tmp_path, before):
    for name, uid in {"1.dcm": "1.2.3", "2.dcm": "1.2.34", "3.dcm": "1.2.3"}.items():
        dicom(tmp_path / "d" / "x" / "case" / name, uid, before)
        dicom(tmp_path / "d" / "x" / "one" / name, "5.6", before)
    touched(tmp_path, "d/x/case/0.dcm", "d/y/n.svs")
    draft = directory(tmp_path / "d", positive="x")
    first, second = (hashlib.sha256(uid).hexdigest()[:8] for uid in (b"1.2.3", b"1.2.34"))
    positive = [entry for entry in draft.rows if entry.label == "1"]
    assert {entry.slide_id: Path(entry.path).name for entry in positive} == {
        f"case-{first}": "1.dcm", f"case-{second}": "2.dcm", "one": "1.dcm",
    }  # fmt: skip
    assert left_out(draft, tmp_path) == {
        "the header of a DICOM file names no series": ["d/x/case/0.dcm"]
    }


def test_links_that_go_round_end_and_a_folder_is_looked_into_once(tmp_path):
    touched(tmp_path / "d", "x/a.svs", "x/deep/b.svs", "y/n.svs")
    (tmp_path / "d" / "x" / "deep" / "up").symlink_to("../..")
    (tmp_path / "d" / "x" / "same").symlink_to("deep")
    draft = directory(tmp_path / "d", positive="x")
    assert len({os.path.realpath(entry.path) for entry in draft.rows}) == len(draft.rows)
    assert {entry.slide_id for entry in draft.rows} <= {"a", "b", "n"}


def test_a_folder_whose_name_is_no_utf8_makes_no_manifest(tmp_path):
    folder = tmp_path / "d" / "x" / os.fsdecode(b"\xff")
    touched(folder, "a.svs")
    with pytest.raises(
        CohortError, match=r"1 left out, its path is no UTF-8 of one line .*xff/a.svs"
    ):
        directory(tmp_path / "d", positive="x")
