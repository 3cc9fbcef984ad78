import hashlib
import json
import os

import pytest
import shapely

from hnm.errors import CohortError
from hnm.slides.annotations import read_annotation
from hnm.slides.cohort.cohort import read_manifest
from hnm.slides.cohort.outlines import outlined
from hnm.slides.cohort.slide_names import slide_ids_of
from hnm.slides.cohort.sources import camelyon16, directory, tcga, write_manifest

DX, OTHER = "d4ff32cd-38cf-40ea-8213-45c2b100ac01", "0a1b2c3d-0000-4000-8000-000000000000"


def asap(*annotations):
    """ASAP's XML of (group, corners)."""
    shapes = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(
            f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(corners)
        )
        + "</Coordinates></Annotation>"
        for group, corners in annotations
    )
    return (
        '<?xml version="1.0"?><ASAP_Annotations>'
        f"<Annotations>{shapes}</Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def left_out(found, folder):
    """Reason -> what was left out, by its path from `folder`."""
    return {
        reason: sorted(name.removeprefix(f"{folder}/") for name in names)
        for reason, names in found.left_out.names.items()
    }


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_tumour_groups_without_the_excluded(tmp_path):
    """Two groups of tumour, a hole over the border of the first, a stray click, and a group of its
    own.
    """
    path = tmp_path / "a.xml"
    path.write_text(
        asap(
            ("_0", box(0, 0, 100, 50)),
            ("_1", box(200, 0, 230, 20)),
            ("_2", box(90, 10, 210, 15)),
            ("_0", [(5, 5)]),
            ("necrosis", box(0, 0, 9, 9)),
        )
    )
    regions = outlined(path)
    assert [region.name for region in regions] == ["tumour", "tumour", "necrosis"]
    assert [region.geometry.area for region in regions] == [100 * 50 - 10 * 5, 30 * 20 - 10 * 5, 81]
    path.write_text(asap(("Tumor", box(0, 0, 60, 40)), ("Exclusion", box(10, 10, 20, 20))))
    (region,) = outlined(path)
    assert region.geometry.equals(shapely.box(0, 0, 60, 40) - shapely.box(10, 10, 20, 20))
    assert len(region.geometry.interiors) == 1
    path.write_text(asap(("_0", box(0, 0, 10, 10)), ("_2", box(-5, -5, 20, 20))))
    assert outlined(path) == []


def test_polygons_of_ncrf(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "positive": [{"name": "t", "vertices": box(0, 0, 10, 20)}],
                "negative": [{"name": "n", "vertices": box(0, 0, 10, 5)}],
            }
        )
    )
    (region,) = outlined(tmp_path / "a.json")
    assert (region.name, region.geometry.bounds) == ("tumour", (0, 5, 10, 20))


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
    found = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    write_manifest(found.entries, tmp_path / "out" / "slides.csv")
    entries = {entry.slide_id: entry for entry in read_manifest(tmp_path / "out" / "slides.csv")}
    assert set(entries) == {f"normal_{n:03d}" for n in range(1, 10)} | {
        f"tumor_{n:03d}" for n in range(1, 6)
    } | {"test_001", "test_002", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if entry.label} == {
        f"tumor_{n:03d}" for n in range(1, 6)
    } | {"test_001", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if entry.split == "test"} == {
        "test_001",
        "test_002",
        "test_114",
    }
    validation = [
        entries[slide_id].label
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
    assert [note.split(":")[0] for note in found.notes] == [
        "test_114 has no annotation",
        "tumor_004 has no annotation",
    ]
    assert left_out(found, challenge) == {
        "it holds a metastasis; its makers gave it out again as tumor_111": ["normal_086"],
        "it is a duplicate of another slide of the test set": ["test_049"],
        "slides that are not named normal_, tumor_ or test_ and a number": [
            "background/x.tif",
            "masks/tumor_001_mask.tif",
        ],
    }
    again = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    assert again == found


def test_camelyon16_without_its_test_slides_is_split_later(challenge, tmp_path):
    found = camelyon16(challenge / "training", tmp_path, validation_share=0.2, seed=0)
    assert {entry.split for entry in found.entries} == {None}
    write_manifest(found.entries, tmp_path / "slides.csv")
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
    found = camelyon16(challenge, tmp_path / "a", validation_share=0.2, seed=0)
    reasons = left_out(found, challenge)
    assert reasons["reference.csv does not say whether it is Tumor or Normal"] == [
        "testing/images/test_002.tif",
        "testing/images/test_114.tif",
    ]
    assert reasons["another file has the same name, and is taken"] == ["zz/TUMOR_001.tif"]
    assert [entry.slide_id for entry in found.entries if entry.split == "test"] == ["test_001"]
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


@pytest.fixture
def sheet(tmp_path):
    """Three diagnostic slides of two patients, one frozen section, one of another project, and a
    file that is no slide.
    """
    rows = [
        ("File ID", "File Name", "Project ID", "Case ID", "Sample Type"),
        ("f1", f"TCGA-05-4244-01Z-00-DX1.{DX}.svs", "TCGA-LUAD", "TCGA-05-4244", "Primary Tumor"),
        (
            "f2",
            f"TCGA-05-4244-01Z-00-DX2.{OTHER}.svs",
            "TCGA-LUAD",
            "TCGA-05-4244",
            "Primary Tumor",
        ),
        ("f3", f"TCGA-18-3406-01Z-00-DX1.{DX}.svs", "TCGA-LUSC", "TCGA-18-3406", "Primary Tumor"),
        ("f4", f"TCGA-18-3407-01A-01-TS1.{DX}.svs", "TCGA-LUSC", "TCGA-18-3407", "Primary Tumor"),
        ("f5", "C3L-00001-21.svs", "CPTAC-3", "C3L-00001", "Primary Tumor"),
        ("f6", "counts.tsv", "TCGA-LUAD", "TCGA-05-4244", "Primary Tumor"),
    ]
    (tmp_path / "sheet.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    touched(
        tmp_path,
        f"slides/f1/TCGA-05-4244-01Z-00-DX1.{DX}.svs",
        f"slides/TCGA-18-3406-01Z-00-DX1.{DX}.svs",
    )
    return tmp_path / "sheet.tsv"


def test_tcga_by_a_column_of_the_sheet(sheet, tmp_path):
    found = tcga(tmp_path / "slides", sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    write_manifest(found.entries, tmp_path / "slides.csv")
    assert [
        (entry.slide_id, entry.path, entry.label, entry.patient_id)
        for entry in read_manifest(tmp_path / "slides.csv")
    ] == [
        (
            "TCGA-05-4244-01Z-00-DX1",
            f"slides/f1/TCGA-05-4244-01Z-00-DX1.{DX}.svs",
            0,
            "TCGA-05-4244",
        ),
        (
            "TCGA-05-4244-01Z-00-DX2",
            f"slides/f2/TCGA-05-4244-01Z-00-DX2.{OTHER}.svs",
            0,
            "TCGA-05-4244",
        ),
        ("TCGA-18-3406-01Z-00-DX1", f"slides/TCGA-18-3406-01Z-00-DX1.{DX}.svs", 1, "TCGA-18-3406"),
        (
            "TCGA-18-3407-01A-01-TS1",
            f"slides/f4/TCGA-18-3407-01A-01-TS1.{DX}.svs",
            1,
            "TCGA-18-3407",
        ),
        ("C3L-00001-21", "slides/f5/C3L-00001-21.svs", 0, "C3L-00001"),
    ]
    assert left_out(found, tmp_path) == {"files of the sheet that are no slides": ["counts.tsv"]}
    assert found.notes == [
        f"3 slides are not under {tmp_path / 'slides'}; fetch them, or they go to quarantine",
        (
            "4 slides are diagnostic (DX) and 1 frozen sections, which look otherwise; consider one"
            " kind"
        ),
    ]


@pytest.mark.parametrize(
    ("key", "named", "expected"),
    [
        ("patient_id", ("TCGA-05-4244,1", "TCGA-18-3406,0"), [1, 1, 0]),
        ("slide_id", ("TCGA-05-4244-01Z-00-DX2,1", "C3L-00001-21,0"), [1, 0]),
    ],
)
def test_tcga_by_labels_of_patients_or_slides(sheet, tmp_path, key, named, expected):
    (tmp_path / "labels.csv").write_text(
        "\n".join([f"{key},label,age", *(f"{row},50" for row in named)]) + "\n"
    )
    found = tcga(
        tmp_path / "slides",
        sheet,
        labels=tmp_path / "labels.csv",
        column="Project ID",
        positive=None,
    )
    assert [entry.label for entry in found.entries] == expected
    assert len(
        left_out(found, tmp_path)[f"{tmp_path / 'labels.csv'} has no label of it"]
    ) == 5 - len(expected)


def test_what_is_wrong_with_a_sheet_or_its_labels(sheet, tmp_path):
    for changes, message in (
        (
            {"column": "Stage"},
            r"has no column 'Stage'; its columns are File ID, File Name, Project ID",
        ),
        (
            {"positive": "LUSC"},
            (
                r"0 of 5 slides have Project ID='LUSC'; name one of several values as positive:"
                r" CPTAC-3, TCGA-LUAD, TCGA-LUSC"
            ),
        ),
        (
            {"column": "Sample Type", "positive": "Primary Tumor"},
            r"5 of 5 slides have Sample Type='Primary Tumor'",
        ),
    ):
        with pytest.raises(CohortError, match=message):
            tcga(
                tmp_path / "slides",
                sheet,
                **{"labels": None, "column": "Project ID", "positive": "TCGA-LUSC"} | changes,
            )
    labels = tmp_path / "labels.csv"
    for text, message in (
        (
            "patient_id,label\nTCGA-05-4244,NA\n",
            (
                r"rows of labels.csv without a label of 0 or 1, or without a name: row 2,"
                r" patient_id=TCGA-05-4244, label='NA'"
            ),
        ),
        (
            "patient_id,label\nTCGA-05-4244,1\nTCGA-05-4244,0\n",
            r"labels.csv gives it the labels 0 and 1: patient_id=TCGA-05-4244",
        ),
        ("case,label\na,1\n", "labels.csv has neither a column patient_id nor slide_id"),
        ("patient_id\na\n", "labels.csv needs rows and the columns label; it has patient_id"),
        ("patient_id,label\nnone,1\n", "sheet.tsv holds no slides; name"),
    ):
        labels.write_text(text)
        with pytest.raises(CohortError, match=message):
            tcga(tmp_path / "slides", sheet, labels=labels, column="", positive=None)
    with pytest.raises(
        CohortError,
        match=r"none.tsv cannot be read: No such file or directory; name a table of text",
    ):
        tcga(tmp_path / "slides", tmp_path / "none.tsv", labels=labels, column="", positive=None)


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
    found = directory(tmp_path / "d", positive="tumour")
    assert [
        (entry.slide_id, entry.path.removeprefix(f"{tmp_path}/d/"), entry.label)
        for entry in found.entries
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
    found = directory(tmp_path / "d", positive="x")
    ids = {entry.path: entry.slide_id for entry in found.entries}
    paths = [str(tmp_path / "d" / "x" / name) for name in NAMES if "\t" not in name]
    assert {path: slide_id for slide_id, path in slide_ids_of(paths).items()} == {
        path: ids[path] for path in paths
    }
    short = {path.rpartition("/")[2]: slide_id for path, slide_id in ids.items()}
    assert (short["Case 1 (2).svs"], short["x.y.svs"], short["-b.svs"], short["NA.svs"]) == (
        "Case_1__2_",
        "x.y",
        "b",
        "NA",
    )
    digest = hashlib.sha256("样本.svs".encode()).hexdigest()[:8]
    assert short["样本.svs"] == f"slide-{digest}"  # wherever the file lies
    assert left_out(found, tmp_path) == {
        "its path is no UTF-8 of one line of at most 4096 characters": ["d/x/tab\tc.svs"]
    }
    write_manifest(found.entries, tmp_path / "slides.csv")
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
    found = directory(folder, positive="x")
    assert {(entry.slide_id, entry.label) for entry in found.entries} == {
        ("a", 1), ("t", 1), ("m", 1), ("n", 0), ("b", 0), ("q", 0), ("y", 0),
    }  # fmt: skip
    reasons = left_out(found, folder)
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


# a sequence without a stated length whose one item, also without, names the series 9.9; then one
# that states its length
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
    found = directory(tmp_path / "d", positive="x")
    first, second = (hashlib.sha256(uid).hexdigest()[:8] for uid in (b"1.2.3", b"1.2.34"))
    positive = {entry.slide_id: entry.path for entry in found.entries if entry.label}
    assert {slide_id: path.rpartition("/")[2] for slide_id, path in positive.items()} == {
        f"case-{first}": "1.dcm",
        f"case-{second}": "2.dcm",
        "one": "1.dcm",
    }
    assert left_out(found, tmp_path) == {
        "the header of a DICOM file names no series": ["d/x/case/0.dcm"]
    }


def test_links_that_go_round_end_and_a_folder_is_looked_into_once(tmp_path):
    touched(tmp_path / "d", "x/a.svs", "x/deep/b.svs", "y/n.svs")
    (tmp_path / "d" / "x" / "deep" / "up").symlink_to("../..")
    (tmp_path / "d" / "x" / "same").symlink_to("deep")
    found = directory(tmp_path / "d", positive="x")
    assert len({os.path.realpath(entry.path) for entry in found.entries}) == len(found.entries)
    assert {entry.slide_id for entry in found.entries} <= {"a", "b", "n"}


def sheet_of(tmp_path, *rows):
    header = ("File ID", "File Name", "Project ID", "Case ID", "Sample ID", "Sample Type")
    (tmp_path / "s.tsv").write_text("".join("\t".join(row) + "\n" for row in (header, *rows)))
    return tmp_path / "s.tsv"


def tissue(number, code, words, project="TCGA-LUAD", sample=None):
    """A row of a slide whose barcode has the sample type `code`."""
    case = f"TCGA-AA-{number:04d}"
    return (
        f"f{number}",
        f"{case}-{code}A-01-TS1.uuid{number}.svs",
        project,
        case,
        f"{case}-{sample or code}A",
        words,
    )


@pytest.mark.parametrize("normal", [None, "leave-out", "negative", "keep"])
def test_normal_tissue_is_not_the_tumour_of_its_project(tmp_path, normal):
    sheet = sheet_of(
        tmp_path,
        tissue(1, "01", "Primary Tumor"),
        tissue(2, "01", "Primary Tumor", "TCGA-LUSC"),
        tissue(3, "11", "Solid Tissue Normal", "TCGA-LUSC"),
        tissue(4, "20", "Control Analyte", "TCGA-LUSC"),
        tissue(5, "06", "Metastatic", "TCGA-LUSC"),
    )
    found = tcga(
        tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC", normal=normal
    )
    labels = {entry.patient_id[-1]: entry.label for entry in found.entries}
    tumours = {"1": 0, "2": 1, "5": 1}
    assert labels == tumours | {"negative": {"3": 0}, "keep": {"3": 1, "4": 1}}.get(normal, {})
    assert len(found.left_out) == 5 - len(labels)
    assert (
        "1 slides are of recurrent (02: 0) or metastatic tumours (06, 07: 1), which count as tumour"
        in found.notes
    )


def test_normal_tissue_stays_where_the_label_speaks_of_the_sample(tmp_path):
    sheet = sheet_of(
        tmp_path, tissue(1, "01", "Primary Tumor"), tissue(2, "11", "Solid Tissue Normal")
    )
    found = tcga(tmp_path, sheet, labels=None, column="Sample Type", positive="Primary Tumor")
    assert [entry.label for entry in found.entries] == [1, 0]
    (tmp_path / "l.csv").write_text(
        "slide_id,label\nTCGA-AA-0001-01A-01-TS1,1\nTCGA-AA-0002-11A-01-TS1,0\n"
    )
    assert [
        entry.label
        for entry in tcga(
            tmp_path, sheet, labels=tmp_path / "l.csv", column="", positive=None
        ).entries
    ] == [1, 0]
    (tmp_path / "l.csv").write_text("patient_id,label\nTCGA-AA-0001,0\nTCGA-AA-0002,1\n")
    assert [
        entry.label
        for entry in tcga(
            tmp_path, sheet, labels=tmp_path / "l.csv", column="", positive=None
        ).entries
    ] == [0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (tissue(3, "01", "Solid Tissue Normal"), "of its tissue contradict"),
        (tissue(3, "01", "Metastatic"), "of its tissue contradict"),
        (tissue(3, "11", "Primary Tumor"), "of its tissue contradict"),
        (tissue(3, "01", "Primary Tumor", sample="11"), "of its tissue contradict"),
        (tissue(3, "01", "Primary Tumor, Solid Tissue Normal"), "of its tissue contradict"),
        (
            (*tissue(3, "01", "Primary Tumor")[:3], "TCGA-AA-0009", "", "Primary Tumor"),
            "of its patient contradict",
        ),
        (
            ("f3", "C3L-1.svs", "TCGA-LUAD", "C3L-1, C3L-2", "", "Primary Tumor"),
            "of its patient contradict",
        ),
        (
            ("f3", "C3L-1.svs", "TCGA-LUAD", "a/b", "", "Primary Tumor"),
            "its Case ID 'a/b' is no id",
        ),
        (
            ("f3", "C3L-1.svs", "TCGA-LUAD", "C3L-1", "", "Solid Tissue Normal"),
            "it is normal tissue",
        ),
        (tissue(1, "01", "Primary Tumor"), "the sheet lists it twice"),
    ],
)
def test_a_row_that_contradicts_itself_is_left_out(tmp_path, row, reason):
    sheet = sheet_of(
        tmp_path,
        tissue(1, "01", "Primary Tumor"),
        tissue(2, "01", "Primary Tumor", "TCGA-LUSC"),
        row,
    )
    found = tcga(tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    assert [entry.patient_id for entry in found.entries] == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert [reason in said for said in found.left_out.names] == [True]


def test_slides_of_one_barcode_several_samples_and_unknown_patients(tmp_path):
    twin = ("g1", tissue(1, "01", "")[1].replace("uuid", "other"), *tissue(1, "01", "")[2:])
    second = (
        "g2",
        tissue(2, "01", "")[1].replace("-01A-01", "-06A-01"),
        "TCGA-LUSC",
        "TCGA-AA-0002",
        "",
        "Metastatic",
    )
    unknown = [(f"h{number}", f"C3L {number}.svs", "TCGA-LUSC", "NA", "", "") for number in (1, 2)]
    sheet = sheet_of(
        tmp_path, tissue(1, "01", ""), twin, tissue(2, "01", "", "TCGA-LUSC"), second, *unknown
    )
    touched(tmp_path, "i/unlisted.svs")
    found = tcga(tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    ids = [entry.slide_id for entry in found.entries]
    assert len(set(ids)) == 6 and all(
        slide_id.startswith("TCGA-AA-0001-01A-01-TS1-") for slide_id in ids[:2]
    )
    assert [entry.patient_id for entry in found.entries[4:]] == [
        "C3L_1",
        "C3L_2",
    ]  # two unknown patients are not one
    assert "1 patients have slides of several samples, which stay in one split" in found.notes
    assert "2 slides name no patient: each counts as a patient of its own" in found.notes
    assert left_out(found, tmp_path) == {"slides that the sheet does not list": ["i/unlisted.svs"]}


def test_shapes_of_no_group_keep_the_name_of_none(tmp_path):
    """Nobody said what they are: the converter says so, and evaluate again."""
    touched(tmp_path / "c", "normal_001.tif", "tumor_001.tif", "tumor_002.tif", "tumor_003.tif")
    (tmp_path / "c" / "tumor_001.xml").write_text(asap(("None", box(0, 0, 9, 9))))
    (tmp_path / "c" / "tumor_002.xml").write_text(
        asap(("Metastases", box(0, 0, 9, 9)), ("exclusion", box(0, 0, 3, 9)))
    )
    (tmp_path / "c" / "tumor_003.xml").write_text("<no xml")
    found = camelyon16(tmp_path / "c", tmp_path / "a", validation_share=0.5, seed=0)
    assert [note.partition(":")[0] for note in found.notes] == [
        "tumor_001 has no tumour among its outlines",
        "tumor_003 has no annotation",
    ]
    assert [region.name for region in read_annotation(tmp_path / "a" / "tumor_001.geojson")] == [
        "None"
    ]
    (region,) = read_annotation(tmp_path / "a" / "tumor_002.geojson")
    assert (region.name, region.geometry.area) == ("tumour", 54)


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "' + "&b;" * 9 + '">]><a>&c;</a>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "is no XML of ASAP: it declares a document type"),
        (OUTSIDE, "is no XML of ASAP: it declares a document type"),
        ("<a>" * 200 + "</a>" * 200, "is no XML of ASAP: it has more than 100 levels"),
        (
            asap(("_0", [(0, 0), ("NaN", 5), (5, 5)])),
            r"a.xml, shape 1 \(_0\): 'nan' is no pixel of a slide; delete it",
        ),
        (asap(("_0", [(0, 0), ("inf", 5), (5, 5)])), "'inf' is no pixel of a slide"),
        (asap(("_0", [(0, 0), ("1e308", 5), (5, 5)])), r"'1e\+308' is no pixel of a slide"),
        (
            asap(("_0", [(0, 0), ("x", 5), (5, 5)])),
            "is no XML of ASAP: could not convert string to float: 'x'",
        ),
        (
            asap(("x" * 300, box(0, 0, 9, 9))),
            "a.xml, shape 1: its group 'x+'… .300 characters. is no text of one line",
        ),
        ("", "is no XML of ASAP: no element found"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "is no XML of ASAP: unknown encoding"),
    ],
)
def test_xml_of_a_stranger(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(CohortError, match=message):
        outlined(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it has no list 'positive'"),
        ({"positive": [], "negative": 3}, "it has no list 'negative'"),
        ({"positive": [5], "negative": []}, "a shape of 'positive' has no list 'vertices'"),
        (
            {"positive": [{"vertices": "abc"}], "negative": []},
            "a shape of 'positive' has no list 'vertices'",
        ),
        (
            {"positive": [{"vertices": [[1, 2], [3], [4, 5]]}], "negative": []},
            r"shape 1 \(_0\): '\[3\]' is no corner",
        ),
        (
            {"positive": [{"vertices": [[1, 2], [10**400, 3], [4, 5]]}], "negative": []},
            "is no pixel of a slide",
        ),
        (
            {"positive": [{"vertices": [[1, 2], [float("nan"), 3], [4, 5]]}], "negative": []},
            "is not JSON: NaN is no number",
        ),
    ],
)
def test_ncrf_of_a_stranger(tmp_path, value, message):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(CohortError, match=message):
        outlined(tmp_path / "a.json")


def test_a_folder_whose_name_is_no_utf8_makes_no_manifest(tmp_path):
    folder = tmp_path / "d" / "x" / os.fsdecode(b"\xff")
    touched(folder, "a.svs")
    with pytest.raises(
        CohortError, match=r"1 left out, its path is no UTF-8 of one line .*xff/a.svs"
    ):
        directory(tmp_path / "d", positive="x")
