"""A cohort behind signed URLs: the signatures stand in the manifest and nowhere else."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from hnm.errors import MachineError
from hnm.loop.paths import CohortFiles, TilesFiles
from hnm.params import Cohort, Split, Tiles, Tissue
from hnm.tables import QUARANTINE, SLIDES
from pipelines import cohort, tiles

OUTPUTS = (
    "slides.parquet",
    "patients.csv",
    "labels/train.csv",
    "labels/validation.csv",
    "labels/test.csv",
    "annotations",
    "quarantine.csv",
)


class Signed(SimpleHTTPRequestHandler):
    """Serves the files of a folder to whoever has the signature."""

    def send_head(self):  # type: ignore[no-untyped-def]
        if "sig=hush" not in self.path:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("cache", "store"):
        monkeypatch.setenv(
            f"HNM_{'SLIDE_CACHE' if name == 'cache' else 'STORE'}", str(tmp_path / name)
        )
    forkserver._forkserver._stop()  # it has the environment of the test that started it
    (tmp_path / "far").mkdir()
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Signed, directory=tmp_path / "far")
    ) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_no_output_keeps_a_signature(
    server: str, tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(7):
        path = tiny.aperio(
            tmp_path / "far" / f"s{number}.svs",
            tiny.painted(128, 384, (32, 32, 32 + 16 * number, 64, tiny.STROMA), seed=number),
        )
        rows.append(
            (
                path.stem,
                f"{server}/{path.name}?sig=hush&se=2030",
                number % 2,
                ("train", "validation", "test")[number // 2 % 3],
            )
        )
    pd.DataFrame(rows, columns=["slide_id", "path", "label", "split"]).to_csv(
        "slides.csv", index=False
    )
    (tmp_path / "far" / "s6.svs").unlink()
    section, out = (
        Cohort(name="c", manifest="slides.csv", max_quarantined_share=0.2),
        tmp_path / "out",
    )
    cohort.main(CohortFiles(*(out / output for output in OUTPUTS)), cohort=section, split=Split())
    paths = (
        out / "slides.parquet",
        out / "quarantine.csv",
        out / "packs",
        out / "packs.csv",
        out / "index.parquet",
        out / "tiles_quarantine.csv",
    )
    tiles.main(
        TilesFiles(*paths),
        cohort=section,
        tissue=Tissue(min_area_um2=1000.0),
        tiles=Tiles(mpp=1.0, tile_px=32),
    )
    assert SLIDES.read(out / "slides.parquet")["path"].tolist() == [
        f"{server}/s{number}.svs?***" for number in range(6)
    ]
    assert sorted(pack.name for pack in (out / "packs").iterdir()) == [
        f"s{number}.h5" for number in range(6)
    ]
    (refused,) = QUARANTINE.read(out / "tiles_quarantine.csv").to_numpy().tolist()
    assert refused == ["s6", "open", "s6.svs does not exist"]
    written = [
        path
        for folder in ("out", "store", "cache")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    ]
    assert len(written) > 20 and not [
        path for path in written if b"sig=" in path.read_bytes() or b"hus" in path.read_bytes()
    ]
    assert "sig=" not in "".join(capfd.readouterr())


def test_a_signature_that_is_not_valid_any_more_costs_no_slide(
    server: str, tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the slide, so the stage fails and quarantine does not hide it."""
    monkeypatch.chdir(tmp_path)
    splits = ("train", "validation", "test") * 2
    rows = [
        (f"s{number}", f"{server}/s{number}.svs?sig=hus%68", number // 3, split)
        for number, split in enumerate(splits)
    ]
    pd.DataFrame(rows, columns=["slide_id", "path", "label", "split"]).to_csv(
        "slides.csv", index=False
    )
    with pytest.raises(
        MachineError, match=r"s0.svs may not be read \(its server answers 403 Forbidden\)"
    ) as caught:
        cohort.main(
            CohortFiles(*(tmp_path / output for output in OUTPUTS)),
            cohort=Cohort(name="c", manifest="slides.csv", max_quarantined_share=1.0),
            split=Split(),
        )
    assert "hus" not in str(caught.value)
