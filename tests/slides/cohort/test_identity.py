"""The identity of a slide: what its file states, and what is stored of a URL."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hnm.errors import CohortError, MachineError, SlideError
from hnm.slides.cohort import identity
from hnm.slides.cohort.identity import SlideHeader, SlideSource, check_twins, identify
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.remote import Version
from hnm.store import Store

HEADER = SlideHeader("aperio", (0.25, 0.5), None, (130, 100), Box(0, 0, 130, 100), "f")
URL = "https://archive.example.org/a.svs"


@pytest.fixture
def served(monkeypatch):
    """What the server holds: versions, one a question, and what their files state, one a
    reading.
    """
    versions, headers = [], []
    monkeypatch.setattr(identity, "version_of", lambda url: Version(url, 300, versions.pop(0)))
    monkeypatch.setattr(identity, "_read_header", lambda source: headers.pop(0))
    return versions, headers


def stored_in(store: Store) -> list[Path]:
    return list(store.root.rglob("*.json"))


def test_what_a_url_states_is_kept_under_the_version_that_was_read(tmp_path, served):
    versions, headers = served
    store = Store(tmp_path / "store")
    versions += ["v1", "v2"]
    headers += [HEADER]
    with pytest.raises(StorageError, match=r"^a.svs changed while it was read$"):
        identify(SlideSource("a", URL, None, headers=store))
    assert stored_in(store) == []
    versions += ["v2", "v2", "v2"]
    headers += [HEADER]
    assert identify(SlideSource("a", URL, None, headers=store)).fingerprint == "f"
    assert identify(SlideSource("a", URL, None, headers=store)).mpp == (0.25, 0.5)
    assert len(stored_in(store)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"vendor": 1}',
        json.dumps({**asdict(HEADER), "mpp": [1]}),
        "[" * 50_000,
        "x" * 70_000,
    ],
)
def test_what_was_kept_and_is_damaged_is_read_anew(tmp_path, served, damage):
    versions, headers = served
    store = Store(tmp_path / "store")
    versions += ["v1"] * 4
    headers += [HEADER, HEADER]
    known = identify(SlideSource("a", URL, None, headers=store))
    (path,) = stored_in(store)
    content = path.read_text()
    path.write_text(damage)
    assert identify(SlideSource("a", URL, None, headers=store)) == known
    assert path.read_text() == content


def test_a_mask_is_digested_as_it_is_read(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    (tmp_path / "m.png").write_bytes(b"any bytes")
    assert (
        identify(SlideSource("a", str(path), None, tmp_path / "m.png")).mask_digest
        == hashlib.sha256(b"any bytes").hexdigest()
    )
    assert identify(SlideSource("a", str(path), None)).mask_digest == ""
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(
        SlideError,
        match=(
            r"^its mask folder.png is no regular file but a folder; correct the manifest's column"
            r" mask"
        ),
    ) as caught:
        identify(SlideSource("a", str(path), None, tmp_path / "folder.png"))
    assert caught.value.step == "tissue"
    with pytest.raises(
        MachineError, match=r"^its mask m.png is not there, and its folder is missing or empty"
    ):
        identify(SlideSource("a", str(path), None, tmp_path / "away" / "m.png"))


def test_copies_of_one_file_are_refused():
    with pytest.raises(CohortError, match=r"slides b and c are copies of one file"):
        check_twins({"a": "1", "c": "2", "b": "2"})


def test_an_identity(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=0.25)
    identity = identify(SlideSource("a", str(path), None))
    assert (identity.vendor, identity.mpp, identity.canvas.width, identity.canvas.height) == (
        "aperio",
        (0.25, 0.25),
        130,
        100,
    )
    assert identify(SlideSource("a", str(path), 0.5)).mpp == (0.5, 0.5)
    assert identify(SlideSource("a", str(path), 0.5)).fingerprint == identity.fingerprint


@pytest.mark.parametrize(
    ("mpp", "message"),
    [
        (
            None,
            (
                "its file states no µm per pixel; give them in the manifest's column mpp, or by hnm"
                " predict --mpp, or set cohort.mpp_from_objective: its objective has power 20$"
            ),
        ),
        (
            352.8,
            (
                "352.8 x 352.8 µm per pixel are not within 0.05 and 20; give the true value in the"
                " manifest's column mpp, or by hnm predict --mpp$"
            ),
        ),
    ],
)
def test_a_slide_without_a_plausible_mpp(tmp_path, tiny, mpp, message):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=mpp)
    with pytest.raises(SlideError, match=message) as caught:
        identify(SlideSource("a", str(path), None))
    assert caught.value.step == "mpp"
    assert identify(SlideSource("a", str(path), 0.5)).mpp == (0.5, 0.5)


def test_mpp_from_a_plausible_objective_power(tmp_path, tiny):
    def opening(power, mpp=None, allowed=True):
        return SlideSource(
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
                "its objective power 15 is none of 40, 20, 10; give them in the"
                " manifest's column mpp, or by hnm predict --mpp$"
            ),
        ),
        (
            opening(None),
            (
                "^its file states no µm per pixel; give them in the manifest's column mpp, or by"
                " hnm predict --mpp$"
            ),
        ),
        (opening(20, mpp=352.8), "352.8 x 352.8 µm per pixel are not within"),
    ):
        with pytest.raises(SlideError, match=message) as caught:
            identify(wrong)
        assert caught.value.step == "mpp"
