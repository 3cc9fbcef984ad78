import json
import os

import pytest
import shapely

from hnm.errors import CohortError
from hnm.slides.annotations import read_annotation
from hnm.slides.cohort import read_manifest
from hnm.slides.sources import camelyon16, directory, outlined, tcga, write_manifest

DX, OTHER = "d4ff32cd-38cf-40ea-8213-45c2b100ac01", "0a1b2c3d-0000-4000-8000-000000000000"


def asap(*annotations):
    """ASAP's XML of (group, corners)."""
    shapes = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(corners))
        + "</Coordinates></Annotation>"
        for group, corners in annotations
    )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{shapes}</Annotations><AnnotationGroups/></ASAP_Annotations>'


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_tumour_groups_without_the_excluded(tmp_path):
    """Two groups of tumour, a hole over the border of the first, a stray click, and a group of its own."""
    path = tmp_path / "a.xml"
    path.write_text(
        asap(("_0", box(0, 0, 100, 50)), ("_1", box(200, 0, 230, 20)), ("_2", box(90, 10, 210, 15)), ("_0", [(5, 5)]), ("necrosis", box(0, 0, 9, 9)))
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
        json.dumps({"positive": [{"name": "t", "vertices": box(0, 0, 10, 20)}], "negative": [{"name": "n", "vertices": box(0, 0, 10, 5)}]})
    )
    (region,) = outlined(tmp_path / "a.json")
    assert (region.name, region.geometry.bounds) == ("tumour", (0, 5, 10, 20))


@pytest.fixture
def challenge(tmp_path):
    """Ten normal, five tumour and four test slides of CAMELYON16, with the three that its makers remark on."""
    folder = tmp_path / "c"
    touched(folder, *(f"training/normal/normal_{n:03d}.tif" for n in (*range(1, 10), 86)), *(f"training/tumor/Tumor_{n:03d}.tif" for n in range(1, 6)))
    touched(folder, *(f"testing/images/test_{n:03d}.tif" for n in (1, 2, 49, 114)), "masks/tumor_001_mask.tif", "background/x.tif")
    (folder / "testing/reference.csv").write_text(
        "image,type\ntest_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\nTest_049,Tumor,x,y\ntest_114,Tumor,IDC,Macro\n"
    )
    for number in (1, 2, 3, 5):
        (folder / f"training/tumor_{number:03d}.xml").write_text(asap(("_0", box(10, 20, 30 + number, 50))))
    for name in ("test_001", "test_114"):
        (folder / f"testing/{name}.xml").write_text(asap(("Tumor", box(1, 2, 3, 4))))
    return folder


def test_camelyon16(challenge, tmp_path):
    found = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    write_manifest(found.entries, tmp_path / "out" / "slides.csv")
    entries = {entry.slide_id: entry for entry in read_manifest(tmp_path / "out" / "slides.csv")}
    assert set(entries) == {f"normal_{n:03d}" for n in range(1, 10)} | {f"tumor_{n:03d}" for n in range(1, 6)} | {"test_001", "test_002", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if entry.label} == {f"tumor_{n:03d}" for n in range(1, 6)} | {"test_001", "test_114"}
    assert {slide_id for slide_id, entry in entries.items() if entry.split == "test"} == {"test_001", "test_002", "test_114"}
    validation = [entries[slide_id].label for slide_id, entry in entries.items() if entry.split == "validation"]
    assert (len(validation), sum(validation)) == (6, 2)  # 4 of 9, 2 of 5
    assert {slide_id for slide_id, entry in entries.items() if entry.annotation} == {"tumor_001", "tumor_002", "tumor_003", "tumor_005", "test_001"}
    assert entries["tumor_002"].annotation == "annotations/tumor_002.geojson"
    (region,) = read_annotation(tmp_path / "out" / "annotations" / "tumor_002.geojson")
    assert (region.name, region.geometry.bounds) == ("tumour", (10, 20, 32, 50))
    assert [note.split(":")[0] for note in found.notes] == [
        "normal_086 is left out",
        "test_049 is left out",
        "test_114 has no annotation",
        "tumor_004 has no annotation",
    ]
    again = camelyon16(challenge, tmp_path / "out" / "annotations", validation_share=0.4, seed=3)
    assert again == found


def test_camelyon16_without_its_test_slides_is_split_later(challenge, tmp_path):
    found = camelyon16(challenge / "training", tmp_path, validation_share=0.2, seed=0)
    assert {entry.split for entry in found.entries} == {None}
    write_manifest(found.entries, tmp_path / "slides.csv")
    assert (
        (tmp_path / "slides.csv")
        .read_text()
        .startswith("slide_id,path,label,patient_id,annotation\nnormal_001,c/training/normal/normal_001.tif,0,normal_001,\n")
    )


def test_what_is_wrong_with_camelyon16(challenge, tmp_path):
    def message():
        with pytest.raises(CohortError) as caught:
            camelyon16(challenge, tmp_path / "a", validation_share=0.2, seed=0)
        return str(caught.value)

    reference = challenge / "testing" / "reference.csv"
    reference.write_text("test_001,Tumor\n")
    assert message().endswith("test_002.tif: reference.csv has no label of test_002; put the whole reference.csv beside the test slides")
    reference.write_text("test_001,Macro\n")
    assert message() == f"{reference}, row 1 (test_001): 'macro' is neither Tumor nor Normal"
    reference.unlink()
    assert message() == f"{challenge} has test slides but no reference.csv, which has their labels; put it there"
    touched(challenge, "copy/TUMOR_001.tif")
    assert "have one name; keep one of them" in message()
    with pytest.raises(CohortError, match=r"holds no normal_001.tif, tumor_001.tif"):
        camelyon16(challenge / "masks", tmp_path / "a", validation_share=0.2, seed=0)
    for text, words in (
        ("<a", "is no XML of ASAP"),
        ('<a><Annotation PartOfGroup="_0"><Coordinate X="1"/></Annotation></a>', "is no XML of ASAP: a Coordinate has no Y; fetch it again"),
    ):
        (tmp_path / "b.xml").write_text(text)
        with pytest.raises(CohortError, match=words):
            outlined(tmp_path / "b.xml")
    (tmp_path / "b.json").write_text('{"positive": []}')
    with pytest.raises(CohortError, match=r"b.json is no annotation of NCRF: it has no list 'negative'; fetch it again"):
        outlined(tmp_path / "b.json")


@pytest.fixture
def sheet(tmp_path):
    """Three diagnostic slides of two patients, one frozen section, one of another project, and a file that is no slide."""
    rows = [
        ("File ID", "File Name", "Project ID", "Case ID", "Sample Type"),
        ("f1", f"TCGA-05-4244-01Z-00-DX1.{DX}.svs", "TCGA-LUAD", "TCGA-05-4244", "Primary Tumor"),
        ("f2", f"TCGA-05-4244-01Z-00-DX2.{OTHER}.svs", "TCGA-LUAD", "TCGA-05-4244", "Primary Tumor"),
        ("f3", f"TCGA-18-3406-01Z-00-DX1.{DX}.svs", "TCGA-LUSC", "TCGA-18-3406", "Primary Tumor"),
        ("f4", f"TCGA-18-3407-01A-01-TS1.{DX}.svs", "TCGA-LUSC", "TCGA-18-3407", "Primary Tumor"),
        ("f5", "C3L-00001-21.svs", "CPTAC-3", "C3L-00001", "Primary Tumor"),
        ("f6", "counts.tsv", "TCGA-LUAD", "TCGA-05-4244", "Primary Tumor"),
    ]
    (tmp_path / "sheet.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    touched(tmp_path, f"slides/f1/TCGA-05-4244-01Z-00-DX1.{DX}.svs", f"slides/TCGA-18-3406-01Z-00-DX1.{DX}.svs")
    return tmp_path / "sheet.tsv"


def test_tcga_by_a_column_of_the_sheet(sheet, tmp_path):
    found = tcga(tmp_path / "slides", sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    write_manifest(found.entries, tmp_path / "slides.csv")
    assert [(entry.slide_id, entry.path, entry.label, entry.patient_id) for entry in read_manifest(tmp_path / "slides.csv")] == [
        ("TCGA-05-4244-01Z-00-DX1", f"slides/f1/TCGA-05-4244-01Z-00-DX1.{DX}.svs", 0, "TCGA-05-4244"),
        ("TCGA-05-4244-01Z-00-DX2", f"slides/f2/TCGA-05-4244-01Z-00-DX2.{OTHER}.svs", 0, "TCGA-05-4244"),
        ("TCGA-18-3406-01Z-00-DX1", f"slides/TCGA-18-3406-01Z-00-DX1.{DX}.svs", 1, "TCGA-18-3406"),
        ("TCGA-18-3407-01A-01-TS1", f"slides/f4/TCGA-18-3407-01A-01-TS1.{DX}.svs", 1, "TCGA-18-3407"),
        ("C3L-00001-21", "slides/f5/C3L-00001-21.svs", 0, "C3L-00001"),
    ]
    assert found.notes == [
        f"3 slides are not under {tmp_path / 'slides'}; fetch them, or they go to quarantine",
        "4 slides are diagnostic (DX) and 1 frozen sections, which look otherwise; consider one kind",
    ]


@pytest.mark.parametrize(
    ("key", "named", "expected"),
    [
        ("patient_id", ("TCGA-05-4244,1", "TCGA-18-3406,0"), [1, 1, 0]),
        ("slide_id", ("TCGA-05-4244-01Z-00-DX2,1", "C3L-00001-21,0"), [1, 0]),
    ],
)
def test_tcga_by_labels_of_patients_or_slides(sheet, tmp_path, key, named, expected):
    (tmp_path / "labels.csv").write_text("\n".join([f"{key},label,age", *(f"{row},50" for row in named)]) + "\n")
    found = tcga(tmp_path / "slides", sheet, labels=tmp_path / "labels.csv", column="Project ID", positive=None)
    assert [entry.label for entry in found.entries] == expected
    assert found.notes[0] == f"{5 - len(expected)} slides are left out: {tmp_path / 'labels.csv'} has no label of them"


def test_what_is_wrong_with_a_sheet_or_its_labels(sheet, tmp_path):
    for changes, message in (
        ({"column": "Stage"}, r"has no column 'Stage'; its columns are File ID, File Name, Project ID"),
        ({"positive": "LUSC"}, r"0 of 5 slides have Project ID='LUSC'; name one of several values as positive: CPTAC-3, TCGA-LUAD, TCGA-LUSC"),
        ({"column": "Sample Type", "positive": "Primary Tumor"}, r"5 of 5 slides have Sample Type='Primary Tumor'"),
    ):
        with pytest.raises(CohortError, match=message):
            tcga(tmp_path / "slides", sheet, **{"labels": None, "column": "Project ID", "positive": "TCGA-LUSC"} | changes)
    labels = tmp_path / "labels.csv"
    for text, message in (
        ("patient_id,label\nTCGA-05-4244,yes\n", r"labels.csv, row 2 \(patient_id=TCGA-05-4244\): label='yes' is not 0 or 1; leave out"),
        ("patient_id,label\na,1\nb,0\na,0\n", r"labels.csv, row 4: patient_id=a has the labels 0 and 1"),
        ("case,label\na,1\n", "labels.csv has neither a column patient_id nor slide_id"),
        ("patient_id\na\n", "labels.csv needs rows and the columns label; it has patient_id"),
        ("patient_id,label\nnone,1\n", "sheet.tsv holds no slides; name"),
    ):
        labels.write_text(text)
        with pytest.raises(CohortError, match=message):
            tcga(tmp_path / "slides", sheet, labels=labels, column="", positive=None)
    with pytest.raises(CohortError, match=r"none.tsv cannot be read: No such file or directory; name a table of text"):
        tcga(tmp_path / "slides", tmp_path / "none.tsv", labels=labels, column="", positive=None)


def test_one_folder_a_class(tmp_path):
    touched(tmp_path, "d/tumour/a.svs", "d/tumour/deep/b.ndpi", "d/healthy/c.mrxs", "d/healthy/c/Data0000.dat", "d/odd/series/1.dcm", "d/odd/series/2.dcm")
    found = directory(tmp_path / "d", positive="tumour")
    assert [(entry.slide_id, entry.path.removeprefix(f"{tmp_path}/d/"), entry.label) for entry in found.entries] == [
        ("c", "healthy/c.mrxs", 0),
        ("series", "odd/series/1.dcm", 0),
        ("a", "tumour/a.svs", 1),
        ("b", "tumour/deep/b.ndpi", 1),
    ]
    with pytest.raises(CohortError, match=r"d has no folder 'cancer'; its folders are healthy, odd, tumour"):
        directory(tmp_path / "d", positive="cancer")
    touched(tmp_path, "d/tumour/a b.svs")
    with pytest.raises(CohortError, match=r"a b.svs': its name cannot be a slide_id; rename it"):
        directory(tmp_path / "d", positive="tumour")
    touched(tmp_path, "empty/x/readme.txt")
    with pytest.raises(CohortError, match=r"empty holds no slides \(.bif, .czi"):
        directory(tmp_path / "empty", positive="x")


def test_a_manifest_with_a_slide_twice_is_refused(tmp_path):
    touched(tmp_path, "d/x/a.svs", "d/y/a.tif")
    with pytest.raises(CohortError, match=r"slides.csv: slide_id=a stands there twice"):
        write_manifest(directory(tmp_path / "d", positive="x").entries, tmp_path / "slides.csv")


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "' + "&b;" * 9 + '">]><a>&c;</a>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "is no XML of ASAP: it declares a document type"),
        (OUTSIDE, "is no XML of ASAP: it declares a document type"),
        ("<a>" * 200 + "</a>" * 200, "is no XML of ASAP: it has more than 100 levels"),
        (asap(("_0", [(0, 0), ("NaN", 5), (5, 5)])), r"a.xml, shape 1 \(_0\): 'nan' is no pixel of a slide; delete it"),
        (asap(("_0", [(0, 0), ("inf", 5), (5, 5)])), "'inf' is no pixel of a slide"),
        (asap(("_0", [(0, 0), ("1e308", 5), (5, 5)])), r"'1e\+308' is no pixel of a slide"),
        (asap(("_0", [(0, 0), ("x", 5), (5, 5)])), "is no XML of ASAP: could not convert string to float: 'x'"),
        (asap(("x" * 300, box(0, 0, 9, 9))), "a.xml, shape 1: its group 'x+'… .300 characters. is no text of one line"),
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
        ({"positive": [{"vertices": "abc"}], "negative": []}, "a shape of 'positive' has no list 'vertices'"),
        ({"positive": [{"vertices": [[1, 2], [3], [4, 5]]}], "negative": []}, r"shape 1 \(_0\): '\[3\]' is no corner"),
        ({"positive": [{"vertices": [[1, 2], [10**400, 3], [4, 5]]}], "negative": []}, "is no pixel of a slide"),
        ({"positive": [{"vertices": [[1, 2], [float("nan"), 3], [4, 5]]}], "negative": []}, "is not JSON: NaN is no number"),
    ],
)
def test_ncrf_of_a_stranger(tmp_path, value, message):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(CohortError, match=message):
        outlined(tmp_path / "a.json")


def test_a_folder_whose_name_is_no_utf8_makes_no_manifest(tmp_path):
    folder = tmp_path / "d" / "x" / os.fsdecode(b"\xff")
    touched(folder, "a.svs")
    with pytest.raises(CohortError, match=r"udcff/a.svs': this path is not UTF-8 of one line, so that no manifest can hold it"):
        write_manifest(directory(tmp_path / "d", positive="x").entries, tmp_path / "slides.csv")
    assert not (tmp_path / "slides.csv").exists()
