import contextlib
import csv
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError
from hnm.names import is_id, is_printable
from hnm.slides.cohort.manifest import ManifestRow, read_manifest


def manifest(path: Path, *rows, header=("slide_id", "path", "label")) -> Path:
    with (path / "slides.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path / "slides.csv"


def test_a_manifest_with_everything(tmp_path):
    header = ("path", "slide_id", "annotation", "label", "patient_id", "split", "mpp", "mask")
    path = manifest(
        tmp_path,
        ("x/a.svs", "a", "a.geojson", 1, "p1", "train", "0.25", "m.png"),
        ("/far/b.svs", "b", "", 0, "", "test", "", ""),
        header=header,
    )
    assert read_manifest(path) == [
        ManifestRow("a", "x/a.svs", "1", "p1", "train", 0.25, "a.geojson", "m.png"),
        ManifestRow("b", "/far/b.svs", "0", "b", "test", None, None, None),
    ]


def test_a_manifest_as_excel_saves_it(tmp_path):
    (tmp_path / "slides.csv").write_bytes("\ufeffslide_id,path,label\r\na, a.svs ,1\r\n".encode())
    assert read_manifest(tmp_path / "slides.csv") == [
        ManifestRow("a", "a.svs", "1", "a", None, None, None, None)
    ]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ("slide_id", "path", "lable"),
            [("a", "a.svs", 1)],
            r"unknown column 'lable'; did you mean label\?",
        ),
        (
            ("slide_id", "path", "label", "xyz"),
            [("a", "a.svs", 1, 2)],
            r"unknown column 'xyz'; known are slide_id, path, label, patient_id",
        ),
        (
            ("slide_id;path;label",),
            [("a;a.svs;1",)],
            r"its columns are separated by ';'; save it with commas",
        ),
        (
            ("slide_id\tpath\tlabel",),
            [("a\ta.svs\t1",)],
            r"its columns are separated by '\\t'; save it with commas",
        ),
        (
            ("slide_id", "label"),
            [("a", 1)],
            r"column path is missing; required are slide_id, path, label",
        ),
        (
            ("slide_id", "path", "label", "label"),
            [("a", "a.svs", 1, 1)],
            r"a column stands there twice",
        ),
        (("slide_id", "path", "label"), [], r"lists no slides"),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs", 1), ("b", "b.svs", "NA")],
            r"row 3 \(slide_id=b\): label='NA' is not 0 or 1, and no word for a class; correct it",
        ),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs", "x" * 257)],
            r"row 2 \(slide_id=a\): label='x+'… \(257 characters\) is not 0 or 1",
        ),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs", "")],
            r"row 2 \(slide_id=a\): label='' is not 0 or 1",
        ),
        (("slide_id", "path", "label"), [("a", "", 1)], r"row 2 \(slide_id=a\): path is empty"),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs")],
            r"row 2: has fewer cells than the header",
        ),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs", 1, 1)],
            r"row 2: has more cells than the header",
        ),
        (
            ("slide_id", "path", "label"),
            [("a b; touch x", "a.svs", 1)],
            r"row 2: slide_id='a b; touch x' must be letters, digits",
        ),
        (
            ("slide_id", "path", "label"),
            [("a", "a.svs", 1), ("a", "b.svs", 1)],
            r"slide_id=a stands there twice; give each slide its own",
        ),
        (
            ("slide_id", "path", "label"),
            [("a", "x/../a.svs", 1), ("b", "a.svs", 1)],
            r"slides a and b are the same file a.svs; list it once",
        ),
        (
            ("slide_id", "path", "label", "patient_id"),
            [("a", "a.svs", 1, "p/1")],
            r"row 2 \(slide_id=a\): patient_id='p/1' must be letters",
        ),
        (
            ("slide_id", "path", "label", "split"),
            [("a", "a.svs", 1, "valid")],
            r"row 2 \(slide_id=a\): split='valid' is not one of train, validation, test",
        ),
        (
            ("slide_id", "path", "label", "mpp"),
            [("a", "a.svs", 1, "0,25")],
            r"row 2 \(slide_id=a\): mpp='0,25' is no number of µm per pixel between 0.05 and 20",
        ),
        (
            ("slide_id", "path", "label", "mpp"),
            [("a", "a.svs", 1, "250")],
            r"row 2 \(slide_id=a\): mpp='250' is no number",
        ),
        (
            ("slide_id", "path", "label", "patient_id", "split"),
            [("a", "a.svs", 1, "p", "train"), ("b", "b.svs", 0, "p", "test")],
            r"patient_id=p is in the splits train and test; put all its slides into one",
        ),
    ],
)
def test_what_is_wrong_with_a_manifest(tmp_path, header, rows, message):
    with pytest.raises(CohortError, match=message):
        read_manifest(manifest(tmp_path, *rows, header=header))


def test_a_manifest_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(
        CohortError,
        match=(
            r"none.csv cannot be read: No such file or directory; correct cohort.manifest, which"
            r" counts"
        ),
    ):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(
        CohortError, match=r"the manifest .* is no regular file; correct cohort.manifest"
    ):
        read_manifest(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"slide_id,path,label\n\xff\xfe,a,1\n")
    with pytest.raises(CohortError, match=r"x.csv is not CSV in UTF-8"):
        read_manifest(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"slide_id,path,label\r\na,a\0.svs,1\r\n",
            "the manifest .* line 2 holds a null character; save it as CSV in UTF-8",
        ),
        (
            "slide_id,path,label\na,a.svs,1\n".encode("utf-16"),
            "the manifest .* is UTF-16, not UTF-8; save it",
        ),
        (
            "slide_id,path,label\nä,a.svs,1\n".encode("cp1252"),
            "the manifest .* is not CSV in UTF-8: .*; save it",
        ),
        (
            b'slide_id,path,label\na,"a.svs,1\n',
            "line 2: unexpected end of data; a quote may be open",
        ),
        (
            b"slide_id,path,label\na," + b"x" * 200_000 + b",1\n",
            "line 2: field larger than field limit",
        ),
        (
            b"slide_id,path,label\n" + b"x" * 129 + b",a.svs,1\n",
            r"row 2: slide_id='x+'… \(129 characters\) must be letters.*128 characters at most",
        ),
        (
            b'slide_id,path,label\na,"a\nb.svs",1\n',
            r"row 3 \(slide_id=a\): path='a\\nb.svs' is no path of one line",
        ),
        (
            b"slide_id,path,label\na," + b"x" * 5000 + b",1\n",
            r"path='x+'… \(5000 characters\) is no path of one line, of at most 4096",
        ),
        (
            b"slide_id,path,label\nCase-1,a.svs,1\ncase-1,b.svs,0\n",
            "slide_id=Case-1 and slide_id=case-1 differ only in capitals",
        ),
        (
            b"slide_id,path,label,patient_id\na,a.svs,1,P\nb,b.svs,0,p\n",
            "patient_id=P and patient_id=p differ only in capitals",
        ),
        (b"slide_id,path,label,mpp\na,a.svs,1,nan\n", "mpp='nan' is no number of µm per pixel"),
        (
            b'slide_id,path,label,mpp\na,a.svs,1,"0,25"\n',
            "mpp='0,25' is no number of µm per pixel between 0.05 and 20, written with a point",
        ),
        (b"", "column slide_id is missing"),
    ],
)
def test_what_a_strangers_manifest_can_be(tmp_path, content, message):
    (tmp_path / "slides.csv").write_bytes(content)
    with pytest.raises(CohortError, match=message):
        read_manifest(tmp_path / "slides.csv")


def test_a_named_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "slides.csv")
    with pytest.raises(
        CohortError, match=r"the manifest .* is no regular file; correct cohort.manifest"
    ):
        read_manifest(tmp_path / "slides.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_on_any_system(tmp_path, end):
    (tmp_path / "slides.csv").write_bytes(
        f"slide_id,path,label{end}a,a [1] ' ü🔬.svs,1{end}{end}b,b.svs,0".encode()
    )
    assert [(entry.slide_id, entry.path) for entry in read_manifest(tmp_path / "slides.csv")] == [
        ("a", "a [1] ' ü🔬.svs"),
        ("b", "b.svs"),
    ]


paths = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20)
    .map(str.strip)
    .filter(lambda p: p and "://" not in p)
)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(IDS, paths, st.booleans()),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0].casefold(),
    )
)
def test_a_manifest_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("m") / "slides.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [
                ("slide_id", "path", "label"),
                *((slide_id, file, int(label)) for slide_id, file, label in rows),
            ]
        )
    try:
        entries = read_manifest(path)
    except CohortError as error:
        assert "are the same file" in str(error)
    else:
        assert [(entry.slide_id, entry.path, entry.label) for entry in entries] == [
            (slide_id, file, str(int(label))) for slide_id, file, label in rows
        ]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_manifest_or_one_error(tmp_path_factory, content, headed):
    path = tmp_path_factory.mktemp("m") / "slides.csv"
    path.write_bytes(b"slide_id,path,label\n" * headed + content)
    with contextlib.suppress(CohortError):
        assert all(
            is_id(entry.slide_id) and is_printable(entry.path) for entry in read_manifest(path)
        )


def test_links_to_one_file_are_the_same_file(tmp_path):
    (tmp_path / "a.svs").touch()
    (tmp_path / "b.svs").symlink_to(tmp_path / "a.svs")
    with pytest.raises(CohortError, match=r"slides a and b are the same file b.svs"):
        read_manifest(manifest(tmp_path, ("a", "a.svs", 1), ("b", "b.svs", 0)))
