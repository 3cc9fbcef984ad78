"""Manifests as people make them: what cannot be a cohort is refused with file, row and cure; what
can be read is read, whatever the spreadsheet.
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError, HnmError
from hnm.slides.cohort.labels import labels_of
from hnm.slides.cohort.manifest import read_manifest
from hnm.tables import LABELS, SLIDES
from tests.support.stages import Project

ROOT = Path(__file__).parents[2]


def rows_of(project: Project) -> list[dict[str, str]]:
    with (project.folder / "in" / "slides.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(
    project: Project, rows: list[dict[str, str]], *, ends: str = "\n", coding: str = "utf-8"
) -> None:
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(rows[0]), lineterminator=ends)
    table.writeheader()
    table.writerows(rows)
    (project.folder / "in" / "slides.csv").write_bytes(stream.getvalue().encode(coding))


def refusal(project: Project) -> str:
    """What the stage cohort says of a manifest that it refuses: one line, and nothing is
    written.
    """
    done = project.run("cohort")
    assert done.code == 1 and done.err.startswith("error: ") and "Traceback" not in done.err, (
        done.err
    )
    assert not (project.folder / "data" / "cohort" / "slides.parquet").exists()
    return done.err


def test_patient_in_two_splits(fresh: Project) -> None:
    rows = rows_of(fresh)
    train, test = (
        next(row for row in rows if row["split"] == split) for split in ("train", "test")
    )
    test["patient_id"] = train["patient_id"]
    write_rows(fresh, rows)
    message = refusal(fresh)
    assert (
        f"patient_id={train['patient_id']}" in message and "train" in message and "test" in message
    )


def test_one_class_split(fresh: Project) -> None:
    rows = [row for row in rows_of(fresh) if row["split"] != "validation" or row["label"] == "1"]
    write_rows(fresh, rows)
    assert "split validation has only slides of label 1" in refusal(fresh)


@pytest.mark.parametrize("label", ["", "2", "1.0", "positive", "nan", "-1", "０", "True"])
def test_bad_labels(fresh: Project, label: str) -> None:
    rows = rows_of(fresh)
    rows[3]["label"] = label
    write_rows(fresh, rows)
    with pytest.raises(
        CohortError,
        match=rf"row 5 \(slide_id={rows[3]['slide_id']}\): label={label!r} is not 0 or 1",
    ):
        place = fresh.folder / "in" / "slides.csv"
        labels_of(read_manifest(place), (), place)


@pytest.mark.parametrize(
    "slide_id",
    [
        "../up",
        "a/b",
        "a b",
        "a;touch PWNED",
        "$(touch PWNED)",
        ".hidden",
        "-rf",
        "",
        "a\x00b",
        "a\nb",
        "ä",
        "x" * 260,
        "CON" * 100,
        "{a}",
        "${x}",
        "=1+1",
        "\u202ea",
    ],
)
def test_ids_and_paths(fresh: Project, slide_id: str) -> None:
    """An id goes into names of files and into pages; one that could be a path, a command or a
    formula is refused by its row.
    """
    rows = rows_of(fresh)
    rows[0]["slide_id"] = slide_id
    write_rows(fresh, rows)
    with pytest.raises(CohortError) as refused:
        read_manifest(fresh.folder / "in" / "slides.csv")
    assert "slides.csv" in str(refused.value) and len(str(refused.value)) < 600
    assert all(character.isprintable() for character in str(refused.value))
    assert not list(fresh.folder.rglob("PWNED"))


def test_ids_that_differ_by_case_alone(fresh: Project) -> None:
    """On many file systems `Case-1` and `case-1` are one file: one slide would take the other's
    tiles.
    """
    rows = rows_of(fresh)
    rows[0]["slide_id"], rows[1]["slide_id"] = "Case-1", "case-1"
    write_rows(fresh, rows)
    message = refusal(fresh)
    assert "Case-1" in message and "case-1" in message


def test_a_path_out_of_the_folder_and_one_with_odd_letters_are_read(
    fresh: Project, undisturbed: Project
) -> None:
    """Slides may lie anywhere and have any name: it is the id that counts."""
    rows = rows_of(fresh)
    folder = fresh.folder / "in" / "Prüfung; $(x) 'a' 日本"
    folder.mkdir()
    for row in rows[:2]:
        place = fresh.folder / "in" / row["path"]
        place.rename(folder / f"{row['slide_id']} =1+1.svs")
        row["path"] = f"{folder.name}/{row['slide_id']} =1+1.svs"
    rows[2]["path"] = str((fresh.folder / "in" / rows[2]["path"]).absolute())
    write_rows(fresh, rows)
    fresh.succeed("cohort", "tiles")
    assert fresh.bytes_of("data/tiles/packs") == undisturbed.bytes_of("data/tiles/packs")


def test_a_name_that_is_no_utf_8(fresh: Project, undisturbed: Project) -> None:
    """A file system gives any bytes; a file of such a name beside the slides disturbs nobody, and a
    manifest that means it names its row.
    """
    place = fresh.folder / "in" / "slides"
    odd = Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe.svs"))
    odd.write_bytes(b"no slide")
    fresh.succeed("cohort")
    assert fresh.bytes_of("data/cohort") == undisturbed.bytes_of("data/cohort")
    manifest = fresh.folder / "in" / "slides.csv"
    manifest.write_bytes(manifest.read_bytes() + b"odd,slides/\xff\xfe.svs,0,odd,train,\n")
    fresh.clear("cohort")
    assert "UTF-8" in refusal(fresh)


@pytest.mark.parametrize(
    ("coding", "ends"),
    [("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r")],
)
def test_unicode_crlf_and_byte_order_marks(fresh: Project, coding: str, ends: str) -> None:
    rows = rows_of(fresh)
    expected = [row["slide_id"] for row in rows]
    write_rows(fresh, rows, coding=coding, ends=ends)
    assert [
        entry.slide_id for entry in read_manifest(fresh.folder / "in" / "slides.csv")
    ] == expected


@pytest.mark.parametrize("coding", ["cp1252", "utf-16", "latin-1"])
def test_cp1252_and_other_codings(fresh: Project, coding: str) -> None:
    rows = rows_of(fresh)
    rows[0]["path"] = "slides/Müller.svs"
    write_rows(fresh, rows, coding=coding)
    assert "UTF-8" in refusal(fresh)
    done = fresh.run("hnm doctor")
    assert done.code in (0, 1) and "Traceback" not in done.err + done.out, done.err


def test_huge_and_wide_csv(fresh: Project) -> None:
    """Ten thousand columns, a cell of a megabyte, a hundred thousand rows: an answer in seconds, of
    a bounded length.
    """
    place = fresh.folder / "in" / "slides.csv"
    text = place.read_text().splitlines()
    wide = "\n".join([text[0] + "".join(f",c{n}" for n in range(10_000)), *text[1:]])
    cell = "\n".join([text[0], text[1].replace("slides/", "slides/" + "x" * 1_000_000, 1)])
    for content in (wide, cell, ",".join(["slide_id"] * 10_000), "\n" * 1_000_000, '"' * 100_001):
        place.write_text(content)
        with pytest.raises(CohortError) as refused:
            read_manifest(place)
        assert "slides.csv" in str(refused.value) and len(str(refused.value)) < 2_000
    place.write_text(
        "\n".join([text[0], *(f"s{n},s{n}.svs,{n % 2},p{n},train," for n in range(100_000))]) + "\n"
    )
    assert len(read_manifest(place)) == 100_000


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", '=HYPERLINK("http://x")']


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas(formula: str, tmp_path: Path) -> None:
    """What a stranger wrote comes into tables that people open in a spreadsheet: it stands there as
    text.
    """
    from hnm.tables import QUARANTINE

    QUARANTINE.write(
        pd.DataFrame({"slide_id": ["a"], "step": ["open"], "reason": [formula]}),
        tmp_path / "quarantine.csv",
    )
    with (tmp_path / "quarantine.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}], cells
    assert formula.strip() in "".join(cells)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(
            lambda text: ("slide_id,path,label\n" + text).encode("utf-8", "replace")
        ),
    )
)
def test_any_bytes_as_a_manifest(content: bytes, tmp_path: Path) -> None:
    place = tmp_path / "slides.csv"
    place.write_bytes(content)
    try:
        entries = read_manifest(place)
    except HnmError as error:
        assert "slides.csv" in str(error) and len(str(error)) < 2_000 and str(error).isprintable()
    else:
        assert entries and all(entry.label for entry in entries)


identifier = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.lists(identifier, min_size=1, max_size=6, unique_by=str.casefold),
    labels=st.lists(st.sampled_from("01"), min_size=6, max_size=6),
)
def test_any_good_ids_come_through(ids: list[str], labels: list[str], tmp_path: Path) -> None:
    """Through the manifest and through tables and back, `nan`, `NA`, `1e5` and `007` among them."""
    place = tmp_path / "slides.csv"
    with place.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ("slide_id", "path", "label"),
                *((name, f"{number}.svs", labels[number]) for number, name in enumerate(ids)),
            ]
        )
    assert [entry.slide_id for entry in read_manifest(place)] == ids
    LABELS.write(
        pd.DataFrame({"slide_id": ids, "label": [int(label) for label in labels[: len(ids)]]}),
        tmp_path / "labels.csv",
    )
    assert LABELS.read(tmp_path / "labels.csv")["slide_id"].tolist() == sorted(ids)


def test_decimal_comma(fresh: Project) -> None:
    """A manifest of a spreadsheet in a country of decimal commas: refused by its row, or by its
    separator.
    """
    rows = rows_of(fresh)
    write_rows(fresh, [{**row, "mpp": "0,25"} for row in rows])
    message = refusal(fresh)
    assert "mpp='0,25'" in message and "row 2" in message
    (fresh.folder / "in" / "slides.csv").write_text(
        (fresh.folder / "in" / "slides.csv").read_text().replace(",", ";")
    )
    assert "separated by ';'" in refusal(fresh)


@pytest.mark.parametrize(
    "settings_of",
    [
        {"TZ": "Pacific/Kiritimati"},
        {"TZ": "America/St_Johns", "LC_ALL": "C"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8"},
        {"PYTHONHASHSEED": "77"},
    ],
)
def test_zone_locale_and_hash_seed(
    fresh: Project, undisturbed: Project, settings_of: dict[str, str]
) -> None:
    """Where and when a stage runs changes no byte. PYTHONHASHSEED needs an interpreter of its
    own.
    """
    if "PYTHONHASHSEED" in settings_of:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DVC", "HNM", "MLFLOW"))
        }
        environment = inherited | {
            "PYTHONPATH": str(ROOT),
            "DVC_ROOT": str(fresh.folder),
            "HNM_TRACKING": "off",
            **settings_of,
        }
        from tests.support.stages import command_of

        subprocess.run(
            [sys.executable, "-m", *command_of("cohort")],
            cwd=fresh.folder,
            env=environment,
            check=True,
            capture_output=True,
        )
    else:
        fresh.succeed("cohort", "encoder", **settings_of)
    assert fresh.bytes_of("data/cohort") == undisturbed.bytes_of("data/cohort")


def test_a_clock_that_goes_back(project: Project, undisturbed: Project) -> None:
    """Files of the future and of 1970 are what they were: times decide nothing of a result."""
    for place in (
        project.folder / "in" / "slides",
        project.folder / ".hnm" / "store",
        project.folder / "data",
    ):
        for number, path in enumerate(sorted(place.rglob("*"))):
            os.utime(path, (0, 0) if number % 2 else (4e9, 4e9))
    project.clear("tiles")
    project.succeed("cohort", "tiles", "mine@1")
    assert project.bytes_of("data") == undisturbed.bytes_of("data")
    assert SLIDES.read(project.folder / "data" / "cohort" / "slides.parquet")["slide_id"].is_unique
