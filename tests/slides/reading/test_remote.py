import fcntl
import os
import time
from pathlib import Path

import pytest

from hnm.errors import FolderError, MachineError, ParamsError, SlideError
from hnm.params import Tiles, Tissue
from hnm.slides.cohort.identity import SlideSource, identify
from hnm.slides.cutting.cut import Cutting, Layout, cut, opened
from hnm.slides.reading import remote
from hnm.slides.reading.canvas import Box, Canvas
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.remote import fetched, version_of
from hnm.store import Store


@pytest.fixture
def far(tmp_path, monkeypatch) -> Path:
    """A folder that is spoken to by URL; the cache holds 1,000 bytes."""
    monkeypatch.setenv("HNM_SLIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.000001")
    monkeypatch.setenv("HNM_SLIDE_PROTOCOLS", "file")
    (tmp_path / "far").mkdir()
    return tmp_path / "far"


def put(folder: Path, name: str, size: int, byte: bytes = b"x") -> str:
    (folder / name).write_bytes(byte * size)
    return f"file://{folder / name}"


def cached(folder: Path) -> list[int]:
    return sorted(
        path.stat().st_size
        for path in (folder.parent / "cache").iterdir()
        if path.suffix != ".lock" and path.name != ".hnm-slides"
    )


def test_a_path_is_itself(tmp_path):
    with fetched(str(tmp_path / "a.svs")) as path:
        assert path == tmp_path / "a.svs"


def test_a_slide_goes_when_it_was_read(far):
    with fetched(put(far, "a.svs", 300)) as path:
        assert (path.suffix, path.read_bytes(), path.parent) == (
            ".svs",
            b"x" * 300,
            far.parent / "cache",
        )
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
        identify(SlideSource("a", put(far, "a.svs", 300), None))
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
    pixels = tiny.painted(128, 384, (32, 32, 64, 64, tiny.STROMA))
    url = f"file://{tiny.aperio(far / 'a.svs', pixels, mpp=1.0)}"
    identity = identify(SlideSource("a", url, None))
    assert len(cached(far)) == 1
    layout = Layout(
        "a",
        url,
        identity.mpp,
        identity.fingerprint,
        None,
        "",
        Tissue(min_area_um2=1000.0),
        Tiles(mpp=1.0, tile_px=32),
    )
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


def test_a_slide_that_another_process_takes_from_the_cache_has_not_changed(
    far, tmp_path, tiny, monkeypatch
):
    """A reader takes a file of another time of change for another slide."""
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.01")
    url = f"file://{tiny.aperio(far / 'a.svs', tiny.painted(128, 384), mpp=1.0)}"
    with fetched(url, stays=True) as path:
        os.utime(path, (1e9, 1e9))
        with OpenSlideReader(path) as slide:
            slide.expect(slide.fingerprint())
            with fetched(url, stays=True) as same:
                assert same == path
            slide.check_unchanged()
        assert path.stat().st_mtime == 1e9 and path.stat().st_atime > 1.7e9


def test_the_use_and_not_the_change_says_what_makes_room(far):
    urls = [put(far, f"{name}.svs", size) for name, size in (("a", 400), ("b", 350))]
    for url, (used, changed) in zip(urls, ((2e9, 1e9), (1e9, 2e9)), strict=True):
        with fetched(url, stays=True) as path:
            os.utime(path, (used, changed))
    with fetched(put(far, "c.svs", 500)):
        assert cached(far) == [400, 500]


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
    with fetched(put(far, "a.svs", 300)):
        pass
    (far.parent / "cache" / f"{'ab' * 16}.part").write_bytes(b"z" * 900)
    with fetched(put(far, "b.svs", 300)):
        assert cached(far) == [300]


class TestItsOwnAlone:
    """Nothing that hnm did not put into the cache is counted, locked, emptied or removed."""

    def test_a_folder_with_slides_of_the_user_is_refused(self, far):
        cache = far.parent / "cache"
        cache.mkdir()
        (cache / "mine.svs").write_bytes(b"mine")
        with (
            pytest.raises(
                FolderError, match=r"HNM_SLIDE_CACHE=.*cache holds other things \(mine.svs\)"
            ),
            fetched(put(far, "a.svs", 300)),
        ):
            pass
        assert sorted(path.name for path in cache.iterdir()) == ["mine.svs"]

    def test_other_names_in_the_cache_are_never_touched(self, far):
        cache = far.parent / "cache"
        with fetched(put(far, "a.svs", 300)):
            pass
        others = [
            "mine.svs",
            "0123.svs",
            f"{'AB' * 16}.svs",
            f"{'ab' * 17}.svs",
            ".hidden",
            "x.part",
            f"{'ab' * 16}.svs.bak",
        ]
        for name in others:
            (cache / name).write_bytes(b"m" * 999)
        (cache / f"{'cd' * 16}.svs").symlink_to(cache / "mine.svs")
        (cache / f"{'ef' * 16}").mkdir()
        with fetched(put(far, "b.svs", 900)):
            pass
        assert all((cache / name).read_bytes() == b"m" * 999 for name in others)
        assert (cache / f"{'cd' * 16}.svs").is_symlink() and (cache / f"{'ef' * 16}").is_dir()

    def test_a_link_as_a_lock_empties_nothing(self, far):
        mine = far.parent / "mine.txt"
        mine.write_text("mine")
        with fetched(put(far, "a.svs", 300)):
            pass
        lock = far.parent / "cache" / "room.lock"
        for stand_in in (
            lambda: lock.symlink_to(mine),
            lambda: os.mkfifo(lock),
            lock.mkdir,
            lambda: lock.symlink_to(far / "none"),
        ):
            lock.unlink()
            stand_in()
            with (
                pytest.raises(
                    FolderError,
                    match=r"room.lock in the cache of slides is no file of hnm .* remove it",
                ),
                fetched(put(far, "b.svs", 300)),
            ):
                pass
            if lock.is_dir() and not lock.is_symlink():
                lock.rmdir()
                lock.touch()
        assert mine.read_text() == "mine" and not (far / "none").exists()

    def test_a_lock_with_other_content_keeps_it(self, far):
        with fetched(put(far, "a.svs", 300)):
            pass
        (far.parent / "cache" / "room.lock").write_text("mine")
        with fetched(put(far, "b.svs", 300)):
            pass
        assert (far.parent / "cache" / "room.lock").read_text() == "mine"

    def test_a_url_named_like_a_lock(self, far):
        with fetched(put(far, "a.lock", 300)) as path:
            assert (path.suffix, path.read_bytes()) == ("", b"x" * 300)

    def test_what_stands_in_for_a_slide_is_not_served(self, far):
        url, mine = put(far, "a.svs", 300), far.parent / "mine.svs"
        mine.write_bytes(b"m" * 300)
        with fetched(url, stays=True) as path:
            pass
        as_long_as_it = f"{'./' * 148}none"  # a link has the length of its target as its size
        for stand_in in (
            lambda: path.symlink_to(mine),
            lambda: path.symlink_to(as_long_as_it),
            lambda: path.write_bytes(b"short"),
            lambda: os.mkfifo(path),
        ):
            path.unlink()
            stand_in()
            with fetched(url, stays=True) as again:
                assert again == path and again.read_bytes() == b"x" * 300 and not again.is_symlink()
        assert mine.read_bytes() == b"m" * 300

    def test_a_folder_that_others_may_write_to(self, far):
        (far.parent / "cache").mkdir()
        (far.parent / "cache").chmod(0o777)
        with (
            pytest.raises(FolderError, match=r"others may write to HNM_SLIDE_CACHE=.*chmod go-w"),
            fetched(put(far, "a.svs", 300)),
        ):
            pass

    def test_the_default_is_no_link(self, far, tmp_path, monkeypatch):
        monkeypatch.delenv("HNM_SLIDE_CACHE")
        monkeypatch.setattr(remote.tempfile, "gettempdir", lambda: str(tmp_path))
        (tmp_path / f"hnm-slides-{os.getuid()}").symlink_to(far)
        with (
            pytest.raises(FolderError, match="is a link, which anybody may have set"),
            fetched(put(far, "a.svs", 300)),
        ):
            pass
        (tmp_path / f"hnm-slides-{os.getuid()}").unlink()
        with fetched(put(far, "a.svs", 300)) as path:
            assert path.parent == tmp_path / f"hnm-slides-{os.getuid()}"
            assert [file.stat().st_mode & 0o777 for file in (path, path.parent)] == [0o600, 0o700]


@pytest.mark.parametrize(
    ("point", "code"),
    [("slide.fetching", "ENOSPC"), ("slide.renaming", "EROFS"), ("whole.creating", "EDQUOT")],
)
def test_a_disk_that_refuses_is_said_in_one_line(far, monkeypatch, point, code):
    monkeypatch.setenv("HNM_FAILPOINT", f"{point}={code}")
    with (
        pytest.raises(
            MachineError,
            match=(
                r"^the cache of slides HNM_SLIDE_CACHE=.*cache cannot be used: .*; (free some"
                r" room|make the file system writable)"
            ),
        ),
        fetched(put(far, "a.svs", 300)),
    ):
        pass
    monkeypatch.delenv("HNM_FAILPOINT")
    assert cached(far) == []
    with fetched(put(far, "a.svs", 300)):
        assert cached(far) == [300]


def test_a_slide_of_equal_size_and_no_tag_is_identified_anew(far, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.01")
    monkeypatch.setattr(remote, "_TAGS", ())
    store = Store(tmp_path / "store")
    url = f"file://{tiny.aperio(far / 'a.svs', tiny.painted(100, 130), mpp=0.25)}"
    before = identify(SlideSource("a", url, None, headers=store)).fingerprint
    content = (far / "a.svs").read_bytes()
    (far / "a.svs").write_bytes(content.replace(b"MPP = 0.25", b"MPP = 0.26"))
    after = identify(SlideSource("a", url, None, headers=store))
    assert (
        len(content) == (far / "a.svs").stat().st_size
        and after.mpp == (0.26, 0.26)
        and after.fingerprint != before
    )


def test_each_way_to_a_slide_checks_its_url(far, monkeypatch):
    url = put(far, "a.svs", 300)
    monkeypatch.delenv("HNM_SLIDE_PROTOCOLS")
    for way in (
        lambda: fetched(url).__enter__(),
        lambda: version_of(url),
        lambda: identify(SlideSource("a", url, None)),
        lambda: preview(url),
    ):
        with pytest.raises(SlideError, match="slides are not fetched by 'file', only by s3"):
            way()


def preview(url):
    layout = Layout("a", url, (1.0, 1.0), "", None, "", Tissue(), Tiles(mpp=1.0, tile_px=32))
    with opened(layout):
        pass


def test_a_server_without_a_tag_is_asked_again(far, monkeypatch):
    monkeypatch.setattr(remote, "_TAGS", ())
    url = put(far, "a.svs", 300)
    with fetched(url, stays=True):
        put(far, "a.svs", 300, b"y")
        with fetched(url, stays=True) as second:
            assert second.read_bytes() == b"y" * 300
    assert cached(far) == []


def test_a_slide_that_changes_while_it_is_fetched(far, monkeypatch):
    url = put(far, "a.svs", 300)
    versions = [version_of(url), remote.Version(url, 305, "")]
    monkeypatch.setattr(remote, "version_of", lambda _: versions.pop(0))
    with (
        pytest.raises(
            StorageError,
            match=r"a.svs changed while it was fetched: 300 bytes came, 305 are there now",
        ),
        fetched(url),
    ):
        pass
    assert cached(far) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("none.svs", SlideError, "^none.svs does not exist$"),
        (
            "a.mrxs",
            SlideError,
            (
                "a.mrxs is one of several files of its slide, which a URL cannot name; mount its"
                " bucket"
            ),
        ),
        ("empty.svs", SlideError, "empty.svs: its server does not tell its size"),
        (
            "large.svs",
            ParamsError,
            "a slide of 0.00 GB does not fit into HNM_SLIDE_CACHE_GB=1e-06; raise that",
        ),
    ],
)
def test_what_is_wrong_with_a_url(far, name, kind, message):
    put(far, "empty.svs", 0)
    put(far, "large.svs", 1001)
    with pytest.raises(kind, match=message), fetched(f"file://{far / name}"):
        pass


def test_what_is_wrong_with_the_settings(far, monkeypatch):
    with (
        pytest.raises(
            ParamsError, match=r"slides at gs:// cannot be fetched: .*pip install 'hnm\[cloud\]'"
        ),
        fetched("gs://b/a.svs"),
    ):
        pass
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "much")
    with (
        pytest.raises(ParamsError, match="HNM_SLIDE_CACHE_GB='much' is no number above 0"),
        fetched(put(far, "a.svs", 3)),
    ):
        pass
    monkeypatch.setenv("HNM_SLIDE_CACHE_KEEP", "yes")
    with (
        pytest.raises(ParamsError, match="HNM_SLIDE_CACHE_KEEP='yes' is neither 0 nor 1"),
        fetched(put(far, "a.svs", 3)),
    ):
        pass


def test_errors_of_a_network_may_pass(far, monkeypatch):
    class Fails:
        def invalidate_cache(self):
            pass

        def info(self, path):
            raise self.error

    def answered(code: int, *, by: str) -> Exception:
        """What a cloud's client raises where it takes each failure for a file that is not there."""
        cause, error = OSError("quiet"), FileNotFoundError("a.svs")
        if by == "boto":
            cause.response = {"ResponseMetadata": {"HTTPStatusCode": code}}
        else:
            setattr(cause, by, code)
        error.__cause__ = cause
        return error

    monkeypatch.setattr(remote, "_file_system", lambda url: (Fails(), url))
    for error, kind, message in (
        (FileNotFoundError("a.svs"), SlideError, "^a.svs does not exist$"),
        (answered(404, by="boto"), SlideError, "^a.svs does not exist$"),
        (
            answered(500, by="boto"),
            StorageError,
            "^a.svs cannot be fetched: its server answers 500 Internal Server Error$",
        ),
        (answered(503, by="status"), StorageError, "answers 503 Service Unavailable$"),
        (
            answered(403, by="status_code"),
            MachineError,
            "^a.svs may not be read; give credentials that may",
        ),
        (
            answered(401, by="code"),
            MachineError,
            "^a.svs may not be read; give credentials that may",
        ),
        (
            ConnectionResetError("reset"),
            StorageError,
            "a.svs cannot be fetched: ConnectionResetError reset",
        ),
        (TimeoutError("slow"), StorageError, "a.svs cannot be fetched: TimeoutError slow"),
        (PermissionError("no"), MachineError, "a.svs may not be read; give credentials that may"),
    ):
        Fails.error = error
        with pytest.raises((SlideError, MachineError), match=message) as caught:
            version_of("s3://bucket/a.svs?token=secret")
        assert type(caught.value) is kind
        assert "secret" not in str(caught.value)


def test_a_slide_that_did_not_change_is_not_fetched_for_its_identity(
    far, tmp_path, tiny, monkeypatch
):
    monkeypatch.setenv("HNM_SLIDE_CACHE_GB", "0.01")
    url = f"file://{tiny.aperio(far / 'a.svs', tiny.painted(100, 130), mpp=0.25)}"
    identity = identify(SlideSource("a", url, None, headers=Store(tmp_path / "store")))
    assert (identity.vendor, identity.mpp, identity.canvas) == (
        "aperio",
        (0.25, 0.25),
        Canvas(130, 100, Box(0, 0, 130, 100)),
    )
    assert identity.fingerprint == identify(SlideSource("a", str(far / "a.svs"), None)).fingerprint
    monkeypatch.setattr(remote, "_fetch", lambda *_: pytest.fail("fetched again"))
    for path in (far.parent / "cache").glob("*.svs"):
        path.unlink()
    assert identify(SlideSource("a", url, None, headers=Store(tmp_path / "store"))) == identity
