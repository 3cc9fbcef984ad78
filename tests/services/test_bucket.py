"""Slides in a bucket and on a web server: moto's S3 and a server of this file, both real ones on
loopback.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import pytest

from hnm.errors import MachineError, SlideError
from hnm.loop.paths import CohortFiles, TilesFiles
from hnm.params import Cohort, Split, Tiles, Tissue
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.remote import fetched, version_of
from hnm.tables import QUARANTINE
from pipelines import cohort, tiles

pytestmark = pytest.mark.services
moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'hnm[services]'"
)
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'hnm[cloud]'")
OUTPUTS = (
    "slides.parquet",
    "patients.csv",
    "labels/train.csv",
    "labels/validation.csv",
    "labels/test.csv",
    "annotations",
    "quarantine.csv",
)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of S3 with a bucket `slides`; the cache is this test's own."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HNM_SLIDE_CACHE": str(tmp_path / "cache"),
        "HNM_SLIDE_CACHE_GB": "0.0001",
        "HNM_STORE": str(tmp_path / "store"),
    }.items():
        monkeypatch.setenv(name, value)
    forkserver._forkserver._stop()  # it has the environment of the test that started it
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="slides")
    yield client
    server.stop()


def run(folder: Path, name: str) -> dict[str, bytes]:
    section = Cohort(name="c", manifest=f"{name}.csv", max_quarantined_share=0.2)
    out = folder / name
    files = CohortFiles(*(out / "cohort" / output for output in OUTPUTS))
    cohort.main(files, cohort=section, split=Split())
    paths = (
        out / "cohort" / "slides.parquet",
        out / "cohort" / "quarantine.csv",
        out / "packs",
        out / "packs.csv",
        out / "index.parquet",
        out / "quarantine.csv",
    )
    tiles.main(
        TilesFiles(*paths),
        cohort=section,
        tissue=Tissue(min_area_um2=1000.0),
        tiles=Tiles(mpp=1.0, tile_px=32),
    )
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "slides.parquet"
    }


def cached(folder: Path) -> int:
    return sum(
        path.stat().st_size
        for path in (folder / "cache").iterdir()
        if path.suffix != ".lock" and path.name != ".hnm-slides"
    )


def test_a_cohort_in_a_bucket_gives_the_bytes_of_a_cohort_on_disk(
    bucket, tmp_path, tiny, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(12):
        path = tiny.aperio(
            tmp_path / f"s{number:02d}.svs",
            tiny.painted(128, 384, (32, 32, 32 + 16 * number, 64, tiny.STROMA), seed=number),
        )
        bucket.upload_file(str(path), "slides", f"deep/{path.name}")
        rows.append(
            (path.stem, path.name, number % 2, ("train", "validation", "test")[number // 4])
        )
    table = pd.DataFrame(rows, columns=["slide_id", "path", "label", "split"])
    table.to_csv("disk.csv", index=False)
    table.assign(path="s3://slides/deep/" + table["path"]).to_csv("bucket.csv", index=False)
    on_disk = run(tmp_path, "disk")
    assert sum(name.endswith(".h5") for name in on_disk) == 12
    monkeypatch.setenv("HNM_STORE", str(tmp_path / "other-store"))
    assert run(tmp_path, "bucket") == on_disk
    assert (
        sum(path.stat().st_size for path in tmp_path.glob("*.svs")) > 100_000
    )  # more than the cache may hold
    assert cached(tmp_path) == 0

    assert run(tmp_path, "bucket") == on_disk
    assert (
        cached(tmp_path) == 0
    )  # nothing was fetched: what the files state, and their tiles, are kept

    changed = tiny.aperio(
        tmp_path / "s03.svs", tiny.painted(128, 384, (32, 32, 192, 64, tiny.STROMA), seed=99)
    )
    bucket.upload_file(str(changed), "slides", "deep/s03.svs")
    bucket.delete_object(Bucket="slides", Key="deep/s08.svs")
    after = run(tmp_path, "bucket")
    assert {name for name in on_disk if on_disk[name] != after.get(name)} - {
        "cohort/quarantine.csv",
        "cohort/patients.csv",
        "quarantine.csv",
        "packs.csv",
        "index.parquet",
        "cohort/labels/test.csv",
    } == {
        "packs/s03.h5",
        "packs/s08.h5",
    }
    assert QUARANTINE.read(tmp_path / "bucket" / "quarantine.csv").to_numpy().tolist() == [
        ["s08", "open", "s08.svs does not exist"]
    ]


def test_a_bucket_that_is_not_there_or_not_ours(bucket):
    with pytest.raises(SlideError, match=r"^a.svs does not exist$"):
        version_of("s3://elsewhere/a.svs")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (404, SlideError, "^a.svs does not exist$"),
        (403, MachineError, "^a.svs may not be read; give credentials"),
        (503, StorageError, "^a.svs cannot be fetched: "),
    ],
)
def test_what_a_bucket_refuses_is_told_apart(bucket, monkeypatch, code, kind, message):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(code)
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises((SlideError, MachineError), match=message) as caught:
        version_of("s3://slides/a.svs")
    assert type(caught.value) is kind
    server.shutdown()


def test_without_credentials(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(MachineError, match=r"^a.svs may not be read; give credentials that may"):
        version_of("s3://slides/a.svs")


def test_a_web_server(tmp_path, monkeypatch):
    monkeypatch.setenv("HNM_SLIDE_CACHE", str(tmp_path / "cache"))
    content, asked = {"/a.svs": b"first"}, Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer("Range" not in self.headers)

        def answer(self, whole: bool) -> None:
            body = content.get(self.path.partition("?")[0])
            self.send_response(200 if body else 404)
            if body:
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
            self.end_headers()
            if body and self.command == "GET":
                asked[self.path] += 1
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/a.svs"
    for _ in range(2):
        with fetched(f"{url}?token=secret", stays=True) as path:
            assert (path.suffix, path.read_bytes()) == (".svs", b"first")
    assert sum(asked.values()) == 1
    content["/a.svs"] = b"other"
    with fetched(f"{url}?token=secret") as path:
        assert path.read_bytes() == b"other"
    with pytest.raises(SlideError, match=r"^b.svs does not exist$"):
        version_of(url.replace("a.svs", "b.svs?token=secret"))
    server.shutdown()
