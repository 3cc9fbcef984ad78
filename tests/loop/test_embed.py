"""Tiles to features: what the store holds is believed only undamaged."""

from pathlib import Path

import numpy as np
import pytest
from tiny_study import make_upstream, tiny_params

from hnm.experiments.trial import Upstream
from hnm.learning import features as feature_files
from hnm.loop.embed import embed_slides
from hnm.store import Store


def test_damaged_features_are_made_again_and_those_of_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_upstream(tmp_path / "data")
    upstream, store, params = Upstream(tmp_path / "data"), Store(tmp_path / "store"), tiny_params()

    def embedded(name: str) -> tuple[int, dict[str, bytes]]:
        folder = tmp_path / name
        packs = (upstream.packs, upstream.pack_digests, upstream.index)
        made, _ = embed_slides(*packs, upstream.encoder, folder, store, embed=params.embed, compute=params.compute)
        return made, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

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
    assert caplog.text.count("the store holds a damaged result, which is removed and made again") == 3
    assert embedded("third") == (0, first)
