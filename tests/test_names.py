import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.names import LONGEST_ID, clash, is_id, is_printable, quoted


@pytest.mark.parametrize("text", ["a", "A-1_b.c", "0", "a..b", "CON", "x" * LONGEST_ID])
def test_ids(text):
    assert is_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "\na",
        ".",
        "..",
        "-a",
        "_a",
        "a/b",
        "a b",
        "ä",
        "a\0",
        "x" * (LONGEST_ID + 1),
        "é",
        "１",
    ],
)
def test_what_is_no_id(text):
    assert not is_id(text)


@given(st.text(max_size=12))
def test_an_id_is_a_safe_name_of_a_file(text):
    assert is_id(text) == (
        0 < len(text) <= 128
        and text.isascii()
        and text[0].isalnum()
        and not set(re.sub("[A-Za-z0-9]", "", text)) - set("._-")
    )


def test_ids_that_differ_in_capitals_alone_clash():
    assert clash(["b", "Case-1", "a", "case-1"]) == ("Case-1", "case-1")
    assert clash(["a", "a", "b"]) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("größe µm 🔬", True),
        ("a\nb", False),
        ("a\tb", False),
        ("\ud800", False),
        ("a\x85b", False),
        ("\u2028", False),
    ],
)
def test_what_can_be_shown(text, answer):
    assert is_printable(text) == answer


def test_a_quote_is_escaped_and_short():
    assert quoted("a\n") == r"'a\n'"
    assert quoted("x" * 61) == f"'{'x' * 60}'… (61 characters)"
    assert quoted([1]) == "'[1]'"
