import json
import os

import pytest

from hnm.errors import CohortError
from hnm.slides import drawings
from hnm.slides.drawings import Drawing, read_drawings
from hnm.slides.reading.canvas import Box, Canvas


def square(left):
    ring = [[left, 0], [left + 10, 0], [left + 10, 5], [left, 5]]
    return json.dumps(
        [
            {
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"classification": {"name": "tumour"}},
            }
        ]
    )


def drawing(folder, slide_id, text, **fields):
    path = folder / f"{slide_id}.geojson"
    path.write_text(text)
    return Drawing(slide_id, path, Canvas(100, 80, Box(0, 0, 100, 80)), **fields)


def test_no_files():
    assert read_drawings([]) == {}


def test_regions_by_slide(tmp_path):
    regions = read_drawings([drawing(tmp_path, "b", square(0)), drawing(tmp_path, "a", square(20))])
    assert {slide_id: own[0].geometry.bounds for slide_id, own in regions.items()} == {
        "a": (20, 0, 30, 5),
        "b": (0, 0, 10, 5),
    }


def test_all_bad_files_are_named_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.geojson")
    bad = [
        Drawing("pipe", tmp_path / "pipe.geojson", Canvas(100, 80, Box(0, 0, 100, 80))),
        drawing(tmp_path, "torn", "{"),
        drawing(tmp_path, "far", square(500), what="veto", cure="; export it again"),
    ]
    with pytest.raises(CohortError) as caught:
        read_drawings([*bad, drawing(tmp_path, "good", square(0))])
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 4 files of regions cannot be used:"
    assert lines[1].startswith(
        f"  veto {tmp_path}/far.geojson, feature 1 (tumour) lies at x 500 to 510"
    )
    assert (
        lines[2]
        == f"  annotation {tmp_path}/pipe.geojson is no regular file; correct the manifest's column"
        " annotation, or the file"
    )
    assert lines[3].startswith(f"  annotation {tmp_path}/torn.geojson is not JSON: ")
    monkeypatch.setattr(drawings, "NAMED", 1)
    with pytest.raises(CohortError, match=r"cannot be used:\n  veto .*\n  and 2 more$"):
        read_drawings(bad)


def test_one_bad_file_is_one_line(tmp_path):
    with pytest.raises(
        CohortError,
        match=(
            rf"^annotation {tmp_path}/torn.geojson is not JSON: .*; correct the manifest's column"
            r" annotation, or the file$"
        ),
    ):
        read_drawings([drawing(tmp_path, "torn", "{")])
