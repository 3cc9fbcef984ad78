import io
import sys

from hnm.progress import WORK, followed


def output_of(items, monkeypatch, terminal, unit="tiles"):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert (
        list(
            followed(
                iter(items), slides=3, doing="cutting slides", line=lambda item: item, unit=unit
            )
        )
        == items
    )
    return stream.getvalue()


ITEMS = [("a: 7 tiles", 7), ("b: it has no tissue", 0), ("c: 5 tiles", 5)]


def test_a_log_has_a_plain_line_for_each_slide(monkeypatch):
    assert (
        output_of(ITEMS, monkeypatch, terminal=False)
        == "1/3 a: 7 tiles\n2/3 b: it has no tissue\n3/3 c: 5 tiles\n"
    )


def test_a_terminal_has_a_bar_and_the_slides_that_failed(monkeypatch):
    shown = output_of(ITEMS, monkeypatch, terminal=True)
    assert "2/3 b: it has no tissue" in shown
    assert "a: 7 tiles" not in shown
    assert "cutting slides" in shown
    assert "3/3" in shown
    assert "tiles/s" in shown


def test_the_work_is_tiles_alone(monkeypatch):
    before = WORK.tiles
    output_of(ITEMS, monkeypatch, terminal=False)
    assert WORK.tiles == before + 12
    assert "slides/s" in output_of(
        [("a: 30 x 20 pixels", 1)], monkeypatch, terminal=True, unit="slides"
    )
    assert WORK.tiles == before + 12
