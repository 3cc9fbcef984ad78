"""A manifest of TCGA."""

import pytest

from hnm.errors import CohortError
from hnm.slides.cohort.draft import write_manifest
from hnm.slides.cohort.manifest import read_manifest
from hnm.slides.cohort.tcga import tcga
from tests.support.cohort_folders import left_out, touched

DX, OTHER = "d4ff32cd-38cf-40ea-8213-45c2b100ac01", "0a1b2c3d-0000-4000-8000-000000000000"


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
    draft = tcga(tmp_path / "slides", sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    write_manifest(draft.rows, tmp_path / "slides.csv")
    assert [
        (entry.slide_id, entry.path, int(entry.label), entry.patient_id)
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
    assert left_out(draft, tmp_path) == {"files of the sheet that are no slides": ["counts.tsv"]}
    assert draft.notes == [
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
    draft = tcga(
        tmp_path / "slides",
        sheet,
        labels=tmp_path / "labels.csv",
        column="Project ID",
        positive=None,
    )
    assert [int(entry.label) for entry in draft.rows] == expected
    assert len(
        left_out(draft, tmp_path)[f"{tmp_path / 'labels.csv'} has no label of it"]
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
    draft = tcga(
        tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC", normal=normal
    )
    labels = {entry.patient_id[-1]: int(entry.label) for entry in draft.rows}
    tumours = {"1": 0, "2": 1, "5": 1}
    assert labels == tumours | {"negative": {"3": 0}, "keep": {"3": 1, "4": 1}}.get(normal, {})
    assert len(draft.left_out) == 5 - len(labels)
    assert (
        "1 slides are of recurrent (02: 0) or metastatic tumours (06, 07: 1), which count as tumour"
        in draft.notes
    )


def test_normal_tissue_stays_where_the_label_speaks_of_the_sample(tmp_path):
    sheet = sheet_of(
        tmp_path, tissue(1, "01", "Primary Tumor"), tissue(2, "11", "Solid Tissue Normal")
    )
    draft = tcga(tmp_path, sheet, labels=None, column="Sample Type", positive="Primary Tumor")
    assert [int(entry.label) for entry in draft.rows] == [1, 0]
    (tmp_path / "l.csv").write_text(
        "slide_id,label\nTCGA-AA-0001-01A-01-TS1,1\nTCGA-AA-0002-11A-01-TS1,0\n"
    )
    assert [
        int(entry.label)
        for entry in tcga(tmp_path, sheet, labels=tmp_path / "l.csv", column="", positive=None).rows
    ] == [1, 0]
    (tmp_path / "l.csv").write_text("patient_id,label\nTCGA-AA-0001,0\nTCGA-AA-0002,1\n")
    assert [
        int(entry.label)
        for entry in tcga(tmp_path, sheet, labels=tmp_path / "l.csv", column="", positive=None).rows
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
    draft = tcga(tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    assert [entry.patient_id for entry in draft.rows] == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert [reason in said for said in draft.left_out.names] == [True]


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
    draft = tcga(tmp_path, sheet, labels=None, column="Project ID", positive="TCGA-LUSC")
    ids = [entry.slide_id for entry in draft.rows]
    assert len(set(ids)) == 6 and all(
        slide_id.startswith("TCGA-AA-0001-01A-01-TS1-") for slide_id in ids[:2]
    )
    assert [entry.patient_id for entry in draft.rows[4:]] == [
        "C3L_1",
        "C3L_2",
    ]  # two unknown patients are not one
    assert "1 patients have slides of several samples, which stay in one split" in draft.notes
    assert "2 slides name no patient: each counts as a patient of its own" in draft.notes
    assert left_out(draft, tmp_path) == {"slides that the sheet does not list": ["i/unlisted.svs"]}
