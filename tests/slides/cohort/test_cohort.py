import contextlib
import csv
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError, SlideError
from hnm.names import is_id, is_printable
from hnm.params import Split
from hnm.slides.cohort.cohort import (
    Entry,
    Opening,
    check_classes,
    check_quarantine,
    check_twins,
    identify,
    quarantine_frame,
    read_manifest,
    splits_of,
)
from hnm.tables import QUARANTINE


def manifest(path: Path, *rows, header=("slide_id", "path", "label")) -> Path:
    with (path / "slides.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path / "slides.csv"


def entry(
    slide_id: str, label: int, patient_id: str | None = None, split: str | None = None
) -> Entry:
    return Entry(
        slide_id, f"{slide_id}.svs", label, patient_id or slide_id, split, None, None, None
    )


def test_a_manifest_with_everything(tmp_path):
    header = ("path", "slide_id", "annotation", "label", "patient_id", "split", "mpp", "mask")
    path = manifest(
        tmp_path,
        ("x/a.svs", "a", "a.geojson", 1, "p1", "train", "0.25", "m.png"),
        ("/far/b.svs", "b", "", 0, "", "test", "", ""),
        header=header,
    )
    assert read_manifest(path) == [
        Entry("a", "x/a.svs", 1, "p1", "train", 0.25, "a.geojson", "m.png"),
        Entry("b", "/far/b.svs", 0, "b", "test", None, None, None),
    ]


def test_a_manifest_as_excel_saves_it(tmp_path):
    (tmp_path / "slides.csv").write_bytes("\ufeffslide_id,path,label\r\na, a.svs ,1\r\n".encode())
    assert read_manifest(tmp_path / "slides.csv") == [
        Entry("a", "a.svs", 1, "a", None, None, None, None)
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
            [("a", "a.svs", 1), ("b", "b.svs", 2)],
            r"row 3 \(slide_id=b\): label='2' is not 0 or 1",
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
            (slide_id, file, int(label)) for slide_id, file, label in rows
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


def test_the_manifests_splits_are_kept():
    entries = [entry("a", 1, split="test"), entry("b", 0, split="train")]
    assert splits_of(entries, Split()) == {"a": "test", "b": "train"}


def test_shares_of_a_split_by_hand():
    """10 positive and 7 negative patients at 0.2 and 0.3: 2 and 1 (rounded from 1.4) test, 3 and 2
    validation.
    """
    entries = [entry(f"p{i}", 1) for i in range(10)] + [entry(f"n{i}", 0) for i in range(7)]
    splits = splits_of(entries, Split(test_share=0.2, validation_share=0.3))
    assert Counter((splits[e.slide_id], e.label) for e in entries) == {
        ("test", 1): 2, ("test", 0): 1, ("validation", 1): 3, ("validation", 0): 2,
        ("train", 1): 5, ("train", 0): 4,
    }  # fmt: skip


patients = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1)), min_size=30, max_size=90)


@settings(max_examples=60, deadline=None)
@given(patients, st.integers(0, 1000), st.randoms())
def test_a_split_is_by_patient_and_not_by_row(slides, seed, random):
    entries = [entry(f"s{i}", label, f"p{patient}") for i, (patient, label) in enumerate(slides)]
    positive = {patient for patient, label in slides if label}
    assume(3 <= len(positive) <= len({patient for patient, _ in slides}) - 3)
    splits = splits_of(entries, Split(seed=seed))
    by_patient = {e.patient_id: splits[e.slide_id] for e in entries}
    assert all(by_patient[e.patient_id] == splits[e.slide_id] for e in entries)
    check_classes({e.slide_id: e.label for e in entries}, splits, "x")
    assert splits_of(random.sample(entries, len(entries)), Split(seed=seed)) == splits


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 1000), st.integers(0, 1))
def test_one_patient_more_moves_few_others(positives, negatives, seed, label):
    entries = [entry(f"p{i}", 1) for i in range(positives)] + [
        entry(f"n{i}", 0) for i in range(negatives)
    ]
    before = splits_of(entries, Split(seed=seed))
    after = splits_of([*entries, entry("new", label)], Split(seed=seed))
    moves = Counter(
        (before[slide_id], after[slide_id])
        for slide_id in before
        if before[slide_id] != after[slide_id]
    )
    for border in ({"train", "test"}, {"train", "validation"}):
        assert sum(count for move, count in moves.items() if set(move) == border) <= 1
    assert all("train" in move for move in moves)


def test_another_seed_is_another_split():
    entries = [entry(f"s{i}", i % 2) for i in range(60)]
    assert splits_of(entries, Split(seed=0)) != splits_of(entries, Split(seed=1))


def test_too_few_patients_to_split():
    entries = [entry("a", 1), entry("b", 1), entry("c", 0), entry("d", 0), entry("e", 0)]
    with pytest.raises(
        CohortError,
        match=(
            r"2 positive patients cannot be split into train, validation, test; each needs one at"
            r" least: add patients"
        ),
    ):
        splits_of(entries, Split())


def test_large_shares_leave_a_train_patient():
    entries = [entry(f"s{i}", i % 2) for i in range(6)]
    splits = splits_of(entries, Split(test_share=0.49, validation_share=0.49))
    assert Counter(splits.values()) == {"train": 2, "validation": 2, "test": 2}


def test_each_split_needs_both_labels():
    splits = {
        "a": "train",
        "b": "train",
        "c": "validation",
        "d": "validation",
        "e": "test",
        "f": "test",
    }
    check_classes({"a": 0, "b": 1, "c": 0, "d": 1, "e": 0, "f": 1}, splits, "m.csv")
    with pytest.raises(
        CohortError,
        match=(
            r"m.csv: split validation has only slides of label 1, but each of train, validation,"
            r" test needs both labels"
        ),
    ):
        check_classes({"a": 0, "b": 1, "c": 1, "d": 1, "e": 0, "f": 1}, splits, "m.csv")
    with pytest.raises(CohortError, match=r"m.csv: split test has no slides"):
        check_classes({"a": 0, "b": 1, "c": 0, "d": 1}, splits, "m.csv")


def test_copies_of_one_file_are_refused():
    with pytest.raises(CohortError, match=r"slides b and c are copies of one file"):
        check_twins({"a": "1", "c": "2", "b": "2"})


def test_too_large_a_quarantine_lists_its_reasons():
    check_quarantine({"a": "bad"}, 10, 0.1)
    with pytest.raises(
        CohortError,
        match=(
            r"2 of 10 slides are in quarantine, more than cohort.max_quarantined_share=0.1"
            r" allows:\n  a: worse\n  b: bad"
        ),
    ):
        check_quarantine({"b": "bad", "a": "worse"}, 10, 0.1)


def test_quarantine_rows():
    assert QUARANTINE.check(quarantine_frame({}), "x").empty
    frame = QUARANTINE.check(
        quarantine_frame({"b": SlideError("gone"), "a": SlideError("blank", step="tissue")}), "x"
    )
    assert frame.to_numpy().tolist() == [["a", "tissue", "blank"], ["b", "open", "gone"]]


def test_an_identity(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=0.25)
    identity = identify(Opening("a", str(path), None))
    assert (identity.vendor, identity.mpp, identity.canvas.width, identity.canvas.height) == (
        "aperio",
        (0.25, 0.25),
        130,
        100,
    )
    assert identify(Opening("a", str(path), 0.5)).mpp == (0.5, 0.5)
    assert identify(Opening("a", str(path), 0.5)).fingerprint == identity.fingerprint


@pytest.mark.parametrize(
    ("mpp", "message"),
    [
        (
            None,
            (
                "its file states no µm per pixel; give them in the manifest's column mpp, or set"
                " cohort.mpp_from_objective: its objective has power 20"
            ),
        ),
        (352.8, "its file states 352.8 x 352.8 µm per pixel, not within 0.05 and 20"),
    ],
)
def test_a_slide_without_a_plausible_mpp(tmp_path, tiny, mpp, message):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=mpp)
    with pytest.raises(SlideError, match=message) as caught:
        identify(Opening("a", str(path), None))
    assert caught.value.step == "mpp"
    assert identify(Opening("a", str(path), 0.5)).mpp == (0.5, 0.5)


def test_mpp_from_a_plausible_objective_power(tmp_path, tiny):
    def opening(power, mpp=None, allowed=True):
        return Opening(
            "a",
            str(
                tiny.aperio(
                    tmp_path / f"{power}-{mpp}.svs", tiny.painted(100, 130), mpp=mpp, power=power
                )
            ),
            None,
            None,
            allowed,
        )

    for power, mpp in ((40, 0.25), (20, 0.5), (10, 1.0)):
        identity = identify(opening(power))
        assert (identity.mpp, identity.objective_power) == ((mpp, mpp), power)
    stated = identify(opening(20, mpp=0.47))
    assert (stated.mpp, stated.objective_power) == ((0.47, 0.47), None)
    for wrong, message in (
        (
            opening(15),
            (
                "its objective power 15 is none of 40, 20, 10; give the µm per pixel in the"
                " manifest's column mpp"
            ),
        ),
        (opening(None), "its file states no µm per pixel; give them in the manifest's column mpp$"),
        (opening(20, mpp=352.8), "its file states 352.8 x 352.8 µm per pixel, not within"),
    ):
        with pytest.raises(SlideError, match=message) as caught:
            identify(wrong)
        assert caught.value.step == "mpp"
