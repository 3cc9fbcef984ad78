import fcntl
import os
import time
from pathlib import Path

import pytest

from hnm.errors import ParamsError, SlideError
from hnm.params import Tiles, Tissue
from hnm.slides import remote
from hnm.slides.cohort import Opening, identify
from hnm.slides.cutting import Cutting, Layout, cut
from hnm.slides.remote import fetched, is_url, place_of, version_of
from hnm.slides.storage import StorageError
from hnm.store import Store


@pytest.fixture
def far(tmp_path, monkeypatch) -> Path:
    """A folder that is spoken to by URL; the cache holds 1,000 bytes."""
    monkeypatch.setenv("HNM_SLIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.000001")
    (tmp_path / "far").mkdir()
    return tmp_path / "far"


def put(folder: Path, name: str, size: int, byte: bytes = b"x") -> str:
    (folder / name).write_bytes(byte * size)
    return f"file://{folder / name}"


def cached(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in (folder.parent / "cache").iterdir() if path.suffix != ".lock")


def test_places():
    assert place_of("s3://bucket/a.svs", Path("/m")) == "s3://bucket/a.svs"
    assert place_of("in/a.svs", Path("/m")) == "/m/in/a.svs"
    assert place_of("/far/a.svs", Path("/m")) == "/far/a.svs"
    assert [is_url(source) for source in ("https://h/a.svs", "/far/a.svs", "a.svs")] == [True, False, False]


def test_a_path_is_itself(tmp_path):
    with fetched(str(tmp_path / "a.svs")) as path:
        assert path == tmp_path / "a.svs"


def test_a_slide_goes_when_it_was_read(far):
    with fetched(put(far, "a.svs", 300)) as path:
        assert (path.suffix, path.read_bytes(), path.parent) == (".svs", b"x" * 300, far.parent / "cache")
        assert cached(far) == [300]
    assert cached(far) == []


def test_a_slide_that_stays_is_fetched_once(far, monkeypatch):
    url = put(far, "a.svs", 300)
    with fetched(url, stays=True) as path:
        pass
    monkeypatch.setattr(remote, "_fetch", lambda *_: pytest.fail("fetched again"))
    with fetched(url) as again:
        assert again == path
    assert cached(far) == []


def test_a_slide_that_cannot_be_used_does_not_stay(far):
    with pytest.raises(SlideError, match="no slide that OpenSlide can read"):
        identify(Opening("a", put(far, "a.svs", 300), None))
    assert cached(far) == []


def test_slides_stay_where_the_user_says_so(far, monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_CACHE_KEEP", "1")
    with fetched(put(far, "a.svs", 300)):
        pass
    assert cached(far) == [300]


def test_the_last_of_two_readers_lets_a_slide_go(far):
    url = put(far, "a.svs", 300)
    with fetched(url) as path:
        with fetched(url) as same:
            assert same == path
        assert cached(far) == [300]
    assert cached(far) == []


def test_a_slide_stays_until_it_is_cut(far, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.01")
    url = f"file://{tiny.aperio(far / 'a.svs', tiny.painted(128, 384, (32, 32, 64, 64, tiny.STROMA)), mpp=1.0)}"
    identity = identify(Opening("a", url, None))
    assert len(cached(far)) == 1
    layout = Layout("a", url, identity.mpp, identity.fingerprint, None, "", Tissue(min_area_um2=1000.0), Tiles(mpp=1.0, tile_px=32))
    assert cut(Cutting(layout, tmp_path / "a.h5")) == 4
    assert cached(far) == []


def test_another_version_is_another_file(far):
    url = put(far, "a.svs", 300)
    with fetched(url) as first:
        put(far, "a.svs", 301, b"y")
        with fetched(url) as second:
            assert (first.read_bytes(), second.read_bytes()) == (b"x" * 300, b"y" * 301)


def test_the_least_recently_used_makes_room(far):
    urls = [put(far, f"{name}.svs", size) for name, size in (("a", 400), ("b", 350), ("c", 500))]
    for url in (*urls[:2], urls[0]):
        with fetched(url, stays=True) as path:
            os.utime(path, ns=(time.time_ns(), time.time_ns()))
    with fetched(urls[2]):
        assert cached(far) == [400, 500]
    with fetched(put(far, "d.svs", 1000)):
        assert cached(far) == [1000]


def test_what_is_read_stays_and_others_wait_for_its_room(far, monkeypatch):
    waits = []
    with fetched(put(far, "a.svs", 700), stays=True) as path:
        reader = (far.parent / "cache" / f"{path.stem}.lock").open("rb")
        fcntl.flock(reader, fcntl.LOCK_SH)

    def end_of_reading(seconds):
        waits.append(path.exists())
        reader.close()

    monkeypatch.setattr(remote.time, "sleep", end_of_reading)
    with fetched(put(far, "b.svs", 600)):
        assert cached(far) == [600]
    assert waits == [True]


def test_what_a_killed_fetch_left_is_removed(far):
    (far.parent / "cache").mkdir()
    (far.parent / "cache" / "abc.part").write_bytes(b"z" * 900)
    with fetched(put(far, "a.svs", 300)):
        assert cached(far) == [300]


def test_a_slide_that_changes_while_it_is_fetched(far, monkeypatch):
    url = put(far, "a.svs", 300)
    versions = [version_of(url), remote.Version(url, 305, "")]
    monkeypatch.setattr(remote, "version_of", lambda _: versions.pop(0))
    with pytest.raises(StorageError, match=r"a.svs changed while it was fetched: 300 bytes came, 305 are there now"), fetched(url):
        pass
    assert cached(far) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("none.svs", SlideError, "^none.svs does not exist$"),
        ("a.mrxs", SlideError, "a.mrxs is one of several files of its slide, which a URL cannot name; mount its bucket"),
        ("empty.svs", SlideError, "empty.svs: its server does not tell its size"),
        ("large.svs", ParamsError, "a slide of 0.00 GB does not fit into HNM_SLIDE_CACHE_GB=1e-06; raise that"),
    ],
)
def test_what_is_wrong_with_a_url(far, name, kind, message):
    put(far, "empty.svs", 0)
    put(far, "large.svs", 1001)
    with pytest.raises(kind, match=message), fetched(f"file://{far / name}"):
        pass


def test_what_is_wrong_with_the_settings(far, monkeypatch):
    with pytest.raises(ParamsError, match=r"slides at nowhere:// cannot be fetched: .*pip install 'hnm\[cloud\]'"), fetched("nowhere://a.svs"):
        pass
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "much")
    with pytest.raises(ParamsError, match="HNM_SLIDE_CACHE_GB='much' is no number above 0"), fetched(put(far, "a.svs", 3)):
        pass
    monkeypatch.setenv("HNM_SLIDE_CACHE_KEEP", "yes")
    with pytest.raises(ParamsError, match="HNM_SLIDE_CACHE_KEEP='yes' is neither 0 nor 1"), fetched(put(far, "a.svs", 3)):
        pass


def test_errors_of_a_network_may_pass(far, monkeypatch):
    class Fails:
        def invalidate_cache(self):
            pass

        def info(self, path):
            raise self.error

    monkeypatch.setattr(remote, "_file_system", lambda url: (Fails(), url))
    for error, kind, message in (
        (ConnectionResetError("reset"), StorageError, "a.svs cannot be fetched: ConnectionResetError reset"),
        (TimeoutError("slow"), StorageError, "a.svs cannot be fetched: TimeoutError slow"),
        (PermissionError("no"), SlideError, "a.svs may not be read; give credentials that may"),
    ):
        Fails.error = error
        with pytest.raises((SlideError, StorageError), match=message) as caught:
            version_of("s3://bucket/a.svs?token=secret")
        assert type(caught.value) is kind
        assert "secret" not in str(caught.value)


def test_a_slide_that_did_not_change_is_not_fetched_for_its_identity(far, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.01")
    url = f"file://{tiny.aperio(far / 'a.svs', tiny.painted(100, 130), mpp=0.25)}"
    known = identify(Opening("a", url, None, known=Store(tmp_path / "store")))
    assert (known.vendor, known.mpp, known.dimensions) == ("aperio", (0.25, 0.25), (130, 100))
    assert known.fingerprint == identify(Opening("a", str(far / "a.svs"), None)).fingerprint
    monkeypatch.setattr(remote, "_fetch", lambda *_: pytest.fail("fetched again"))
    for path in (far.parent / "cache").glob("*.svs"):
        path.unlink()
    assert identify(Opening("a", url, None, known=Store(tmp_path / "store"))) == known
