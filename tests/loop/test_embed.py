"""Tiles to features: what the store holds is believed only undamaged, and only of the same
causes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnm.errors import TableError
from hnm.learning import features as feature_files
from hnm.loop.embed import embed_slides
from hnm.loop.paths import Paths
from hnm.loop.rounds import Loop, Upstream
from hnm.store import Store
from hnm.tables import PACKS
from tests.support.study import make_upstream, tiny_params


def test_damaged_features_are_made_again_and_those_of_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_upstream(tmp_path / "data")
    store, params = Store(tmp_path / "store"), tiny_params()

    def embedded(name: str) -> tuple[int, dict[str, bytes]]:
        files = replace(Paths(tmp_path).embed(0), features=tmp_path / name)
        count, _ = embed_slides(files, store, embed=params.embed, compute=params.compute)
        return count, {path.name: path.read_bytes() for path in sorted(files.features.iterdir())}

    slides, first = embedded("first")
    assert slides == len(first)
    kept = sorted(store.root.glob("features/*/*.h5"))
    torn, zeroed, recordless = kept[:3]
    torn.write_bytes(torn.read_bytes()[:-9])
    zeroed.write_bytes(zeroed.read_bytes()[:-40] + bytes(40))
    assert np.isfinite(feature_files.read(zeroed)).all(), "its form does not tell"
    (store.root / ".hnm-sums" / recordless.relative_to(store.root)).unlink()
    recordless.write_bytes(b"no features")
    assert embedded("second") == (3, first)
    assert (
        caplog.text.count("the store holds a damaged result, which is removed and made again") == 3
    )
    assert embedded("third") == (0, first)


@pytest.fixture
def embedded(tmp_path: Path) -> Callable[[], int]:
    """What embeds the tiny cohort, and says how many slides were not in the store."""
    make_upstream(tmp_path / "data")
    store, params = Store(tmp_path / "store"), tiny_params()

    def embed() -> int:
        files = Paths(tmp_path).embed(0)
        return embed_slides(files, store, embed=params.embed, compute=params.compute)[0]

    return embed


def test_another_torch_or_processor_embeds_anew_and_another_pandas_does_not(
    embedded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, true = {}, metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: said.get(name) or true(name))
    slides = embedded()
    said |= {"pandas": "99.1", "mlflow": "99.1", "openslide-bin": "99.1"}
    assert slides == 16 and embedded() == 0
    for name in ("torch", "timm", "simplejpeg"):
        said[name] = "99.1"
        assert (embedded(), embedded()) == (slides, 0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert embedded() == slides
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert embedded() == 0


def test_no_pack_is_read_to_learn_that_its_features_are_there(
    embedded: Callable[[], int], tmp_path: Path
) -> None:
    embedded()
    pack = tmp_path / "data" / "tiles" / "packs" / "train_0.h5"
    pack.write_bytes(bytes(pack.stat().st_size))
    assert embedded() == 0


def test_packs_that_are_not_those_of_the_table_are_refused(
    embedded: Callable[[], int], tmp_path: Path
) -> None:
    pack, table = (
        tmp_path / "data" / "tiles" / "packs" / "train_0.h5",
        tmp_path / "data" / "tiles" / "packs.csv",
    )
    content = pack.read_bytes()
    pack.write_bytes(content[:-1])
    with pytest.raises(
        TableError,
        match=(
            rf"train_0\.h5 has {len(content) - 1} bytes, not {len(content)} as .*packs\.csv says;"
            r" give `hnm verify --remove`"
        ),
    ):
        embedded()
    pack.unlink()
    with pytest.raises(
        TableError, match=r"train_0\.h5 does not exist; run the stage tiles \(dvc repro\)"
    ):
        embedded()
    pack.write_bytes(content)
    PACKS.write(PACKS.read(table).query("slide_id != 'train_0'"), table)
    with pytest.raises(
        TableError, match=r"packs\.csv does not name the pack of train_0; run the stage tiles"
    ):
        embedded()


SLIDES = 16
"""Of the tiny cohort; each has one features file in the store for each set of causes."""


def count_embedded(data: Path, store: Store, **changes: Any) -> int:
    """How many features files the store holds after round 0 with these sections of the params."""
    next(Loop(Upstream(data.parent), store).rounds(tiny_params(**changes)))
    return len(list(store.root.glob("features/*/*.h5")))


@pytest.fixture(scope="module")
def in_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    """The tiny cohort, and a store that holds its features."""
    folder = tmp_path_factory.mktemp("in_store")
    make_upstream(folder / "data")
    store = Store(folder / "store")
    assert [count_embedded(folder / "data", store) for _ in range(2)] == [SLIDES, SLIDES]
    return folder / "data", store


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"threads": 2}},
        {"compute": {"threads": 1, "precision": "bfloat16"}},
        {"embed": {"dtype": "float16", "batch_tiles": 16}},
        {"embed": {"dtype": "float32", "batch_tiles": 8}},
    ],
    ids=["threads", "precision", "dtype", "batch"],
)
def test_another_cause_gives_other_results(
    in_store: tuple[Path, Store], changes: dict[str, Any]
) -> None:
    data, store = in_store
    before = count_embedded(data, store)
    assert count_embedded(data, store, **changes) == before + SLIDES


ELSEWHERE = """
import sys
from pathlib import Path
sys.path.append({root!r})
from tests.loop.test_embed import count_embedded
from hnm import learning
from hnm.store import Store
assert learning.__file__.startswith({copy!r}), learning.__file__
print(count_embedded(Path({data!r}), Store(Path({store!r}))))
"""


def test_another_version_of_the_code_gives_other_results(
    in_store: tuple[Path, Store], tmp_path: Path
) -> None:
    """A copy of the package, in which the module that embeds has another statement."""
    data, store = in_store
    before = count_embedded(data, store)
    root, copy = Path(__file__).parents[2], tmp_path / "copy"
    for package in ("hnm", "pipelines"):
        shutil.copytree(
            root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (copy / "hnm" / "learning" / "embed.py").open("a") as module:
        module.write("\n\nANOTHER_VERSION = True\n")
    code = ELSEWHERE.format(root=str(root), copy=str(copy), data=str(data), store=str(store.root))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == before + SLIDES
