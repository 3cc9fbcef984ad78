"""What names a slide, and what is kept of it."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.errors import CohortError, ParamsError, SlideError
from hnm.slides.cohort import manifest as manifests
from hnm.slides.reading.urls import (
    checked_url,
    file_name,
    is_inside,
    is_url,
    kept_form,
    lacks_query,
    place_of,
    suffix_of,
)

HEADER = "slide_id,path,label\n"


def test_places():
    assert place_of("s3://bucket/a.svs", Path("/m")) == "s3://bucket/a.svs"
    assert place_of("in/a.svs", Path("/m")) == "/m/in/a.svs"
    assert place_of("/far/a.svs", Path("/m")) == "/far/a.svs"
    assert [is_url(source) for source in ("https://h/a.svs", "/far/a.svs", "a.svs")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "url",
    [
        "s3://b/a.svs",
        "gs://b/a.svs",
        "abfs://box@account.dfs.core.windows.net/a.svs",
        "https://h/a.svs?sig=x",
        "http://[0:0:0:0:0:0:0:1]:8000/a.svs",
        "s3://b/a b.svs",
    ],
)
def test_urls_that_are_fetched(url):
    assert checked_url(url) == url


def test_a_protocol_in_capitals_is_the_same_one():
    assert checked_url("S3://Bucket/A.svs") == "s3://Bucket/A.svs"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "reference::file:///tmp/a.json",
            (
                "slides are not fetched by 'reference::file', only by s3, gs, az, abfs, abfss,"
                " http, https"
            ),
        ),
        ("reference://a::file:///tmp/a.json", "not fetched by 'reference'"),
        ("file:///etc/passwd", "not fetched by 'file'"),
        ("local:///etc/passwd", "not fetched by 'local'"),
        ("memory://a.svs", "not fetched by 'memory'"),
        ("simplecache::s3://b/a.svs", "not fetched by 'simplecache::s3'"),
        ("data:text/plain,://a", "not fetched by 'data:text/plain,'"),
        (" s3://b/a.svs", "not fetched by ' s3'"),
        ("://a.svs", "not fetched by ''"),
        ("s3://b/a.zip::file:///x", "holds '::', which chains protocols"),
        ("s3://b/a.svs%3A%3afile", "holds '::', which chains protocols"),
        (
            "https://h/a.svs\n",
            "blanks at its ends, backslashes or characters that cannot be printed",
        ),
        ("https://h/a\x00.svs", "characters that cannot be printed"),
        ("https://good.org\\@evil.org/a.svs", "backslashes"),
        ("https://h/a.svs ", "blanks at its ends"),
        ("https://user:hush@h/a.svs", "carries a user or a password"),
        ("https://user@h/a.svs", "carries a user or a password"),
        ("s3://key:hush@b/a.svs", "carries a user or a password"),
        ("https:///a.svs", "names no server"),
        ("https://h/a.svs#t=x", "has a fragment"),
        ("https://[h/a.svs", "its URL is malformed"),
        ("https://h:9999999/a.svs", "its URL is malformed"),
    ],
)
def test_urls_that_are_not(url, message):
    with pytest.raises(SlideError, match=message.replace("(", r"\(")) as caught:
        checked_url(url)
    assert "hush" not in str(caught.value)


def test_more_protocols_by_a_setting(monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_PROTOCOLS", "SFTP, hf")
    assert checked_url("sftp://h/a.svs") == "sftp://h/a.svs"
    with pytest.raises(
        SlideError,
        match="only by s3, gs, az, abfs, abfss, http, https, sftp, hf; give a path, or name it in",
    ):
        checked_url("ftp://h/a.svs")
    for named in ("reference", "a::b", "s3://"):
        monkeypatch.setenv("HNM_SLIDE_PROTOCOLS", named)
        with pytest.raises(ParamsError, match=f"HNM_SLIDE_PROTOCOLS names '{named}'"):
            checked_url("s3://b/a.svs")


@pytest.mark.parametrize(
    ("source", "name", "suffix"),
    [
        ("https://h/deep/a.svs?token=x/y.tif", "a.svs", ".svs"),
        ("s3://b/a.lock", "a.lock", ""),
        ("s3://b/a.PART", "a.PART", ""),
        ("s3://b/a.s;v", "a.s;v", ""),
        ("https://[h/a.svs", "a.svs", ".svs"),
        ("https://h/", "h", ""),
        ("/far/a.ndpi", "a.ndpi", ".ndpi"),
    ],
)
def test_names(source, name, suffix):
    assert (file_name(source), suffix_of(source)) == (name, suffix)


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ("https://h/a.svs?sig=x&se=1", "https://h/a.svs?***"),
        ("https://h/a.svs#x", "https://h/a.svs?***"),
        ("https://u:p@h/a.svs", "https://***@h/a.svs"),
        ("s3://b/a.svs", "s3://b/a.svs"),
        ("abfs://box@h/a.svs", "abfs://box@h/a.svs"),
        ("in/a?b.svs", "in/a?b.svs"),
    ],
)
def test_outputs_keep_no_query(source, stored):
    assert kept_form(source) == stored
    assert lacks_query(stored) == stored.endswith("?***")


@given(
    st.text(alphabet=st.characters(exclude_characters="~")), st.text(max_size=9).map("~{}~".format)
)
def test_no_query_is_kept_whatever_stands_before_it(path, token):
    assert token not in kept_form(f"https://h/{path}?{token}")
    assert token not in kept_form(f"https://h/{path}?a={token}#{token}")


def test_a_stage_takes_queries_from_the_manifest(tmp_path):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(HEADER + "a,https://h/a.svs?sig=x,0\nb,in/b.svs,1\n")
    table = pd.DataFrame({"slide_id": ["a", "b"], "path": ["https://h/a.svs?***", "in/b.svs"]})
    assert manifests.with_queries(table, manifest)["path"].tolist() == [
        "https://h/a.svs?sig=x",
        "in/b.svs",
    ]
    manifest.write_text(HEADER + "a,https://other/a.svs?sig=x,0\nb,in/b.svs,1\n")
    with pytest.raises(
        CohortError,
        match="names another place for slide_id=a than when its cohort was checked; run dvc repro",
    ):
        manifests.with_queries(table, manifest)
    without = table.assign(path=["https://h/a.svs", "in/b.svs"])
    assert manifests.with_queries(without, tmp_path / "none.csv") is without


def test_a_manifest_names_the_row_of_a_bad_url(tmp_path):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(HEADER + "a,reference://x::file:///m.json,0\n")
    with pytest.raises(
        CohortError, match=r"row 2 \(slide_id=a\): path: slides are not fetched by 'reference'"
    ):
        manifests.read_manifest(manifest)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.0.9", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("::1", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::808:808", False),
        ("2002:7f00:1::", True),
        ("8.8.8.8", False),
        ("2606:4700:4700::1111", False),
    ],
)
def test_addresses_of_the_house(address, inside):
    assert is_inside(address) is inside


@pytest.mark.parametrize("column", ["mask", "annotation"])
def test_masks_and_annotations_are_files(tmp_path, column):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"slide_id,path,label,{column}\na,a.svs,0,https://h/a.png?sig=hush\n")
    with pytest.raises(
        CohortError,
        match=(
            rf"row 2 \(slide_id=a\): {column} is a URL, which only slides are fetched by; fetch the"
            r" file"
        ),
    ) as caught:
        manifests.read_manifest(manifest)
    assert "hush" not in str(caught.value)
