"""Ids and names of slides that anybody has named."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.names import is_id
from hnm.redaction import readable
from hnm.slides.cohort.slide_names import slide_ids_of


def test_an_id_is_the_file_s_name_where_that_will_do() -> None:
    assert list(slide_ids_of(["a/Case 1 (2).svs", "s3://bucket/b/.hidden.tif"])) == [
        "Case_1__2_",
        "hidden",
    ]
    assert list(slide_ids_of(["https://host/b/c.svs?X-Amz-Credential=a/b&sig=x/y.z"])) == ["c"]
    assert slide_ids_of(["a/s.svs", "a/s.svs"]) == {"s": "a/s.svs"}


@pytest.mark.parametrize(
    "sources",
    [
        ("a/s.svs", "b/s.ndpi", "t.svs"),
        ("Case-1.svs", "case-1.svs"),
        ("Δείγμα.svs", "Κύτταρο.svs", "样本.svs", "标本.svs"),
        ("Δ 7.svs", "Σ 7.svs"),
        ("a b.svs", "a_b.svs", "a-b.svs"),
        ("/mnt/caf\udce9.svs", "/mnt/caf\udce8.svs", "/mnt/café.svs"),
        ("https://host/s.svs?id=1", "https://host/s.svs?id=2", "https://host/s.svs"),
        ("x" * 240 + "1.svs", "x" * 240 + "2.svs"),
    ],
)
def test_files_whose_names_come_to_the_same_keep_ids_of_their_own_in_any_order(
    sources: tuple[str, ...],
) -> None:
    ids = {source: slide_id for slide_id, source in slide_ids_of(sources).items()}
    assert len({slide_id.casefold() for slide_id in ids.values()}) == len(sources) == len(ids)
    assert all(map(is_id, ids.values()))
    for order in itertools.islice(itertools.permutations(sources), 6):
        again = slide_ids_of(order)
        assert {source: slide_id for slide_id, source in again.items()} == ids and list(
            again.values()
        ) == list(order)


def test_ids_of_other_scripts_do_not_depend_on_their_neighbours() -> None:
    assert (
        list(slide_ids_of(["Δείγμα 7.svs"]))
        == list(slide_ids_of(["Δείγμα 7.svs", "样本 7.svs"]))[:1]
        == ["7-d501c232"]
    )


def test_an_id_does_not_depend_on_the_folder_or_on_how_an_umlaut_is_written() -> None:
    assert list(slide_ids_of(["a/样本.svs"])) == list(slide_ids_of(["/b/c/样本.svs"]))
    assert list(slide_ids_of(["u\u0308.svs"])) == list(slide_ids_of(["\u00fc.svs"]))
    assert len(slide_ids_of(["a/样本.svs", "b/样本.svs", "u\u0308.svs", "\u00fc.svs"])) == 4


def test_files_keep_the_ids_that_they_have_and_others_leave_them_alone() -> None:
    assert slide_ids_of(["b/s.svs", "a/s.svs"], {"a/s.svs": "s"}) == {
        "s-dccc7adb": "b/s.svs",
        "s": "a/s.svs",
    }
    signed = {"https://host/s.svs?***": "s"}
    assert slide_ids_of(["https://host/s.svs?token=new"], signed) == {
        "s": "https://host/s.svs?token=new"
    }
    assert "s" not in slide_ids_of(["https://host/s.svs?a=1", "https://host/s.svs?a=2"], signed)


def test_what_cannot_be_printed_is_escaped() -> None:
    assert readable(os.fsdecode(b"/mnt/caf\xe9.svs")) == "/mnt/caf\\xe9.svs"
    assert readable("a\nb\t\x1b[31m\u202e样本.svs") == "a\\x0ab\\x09\\x1b[31m\\u202e样本.svs"
    assert readable("plain é 样本.svs") == "plain é 样本.svs"


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20),
        unique=True,
        max_size=6,
    )
)
def test_any_names_have_ids_that_differ_and_print(names: list[str]) -> None:
    ids = slide_ids_of(names)
    assert sorted(ids.values()) == sorted(names)
    assert all(
        slide_id.isascii()
        and slide_id[0].isalnum()
        and set(slide_id) <= set("-._") | set(filter(str.isalnum, slide_id))
        for slide_id in ids
    )
    assert all(readable(name).isprintable() and readable(name).encode() for name in names)
