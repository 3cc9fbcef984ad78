"""Outlines of ASAP and of NCRF."""

import json

import pytest
import shapely

from hnm.errors import CohortError
from hnm.slides.annotations import read_annotation
from hnm.slides.cohort.camelyon16 import camelyon16
from hnm.slides.cohort.outlines import outlined
from tests.support.cohort_folders import asap, box, touched


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


def test_shapes_of_no_group_keep_the_name_of_none(tmp_path):
    """Nobody said what they are: the converter says so, and evaluate again."""
    touched(tmp_path / "c", "normal_001.tif", "tumor_001.tif", "tumor_002.tif", "tumor_003.tif")
    (tmp_path / "c" / "tumor_001.xml").write_text(asap(("None", box(0, 0, 9, 9))))
    (tmp_path / "c" / "tumor_002.xml").write_text(
        asap(("Metastases", box(0, 0, 9, 9)), ("exclusion", box(0, 0, 3, 9)))
    )
    (tmp_path / "c" / "tumor_003.xml").write_text("<no xml")
    draft = camelyon16(tmp_path / "c", tmp_path / "a", validation_share=0.5, seed=0)
    assert [note.partition(":")[0] for note in draft.notes] == [
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
