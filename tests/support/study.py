"""A tiny cohort as the stages before round 0's head leave it: packs of noise, in which tumour tiles
are redder, and a random encoder.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hnm.learning.encoder import make_encoder, save_encoder
from hnm.params import Encoder, Params, check_params
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack
from hnm.tables import LABELS, MINED, PACKS, SLIDES, TILES, VETOES

TILE_PX = 16
SLIDES_OF = {"train": 6, "validation": 6, "test": 4}

RAW: dict[str, Any] = {
    "rounds": {"0": {}, "1": {"previous": "0"}},
    "later_rounds": {"1": {"previous": "0"}},
    "cohort": {"name": "tiny", "manifest": "slides.csv"},
    "tiles": {"mpp": 1.0, "tile_px": TILE_PX},
    "encoder": {"name": "test_resnet", "weights": "random"},
    "embed": {"dtype": "float32", "batch_tiles": 16},
    "head": {"epochs": 3, "learning_rate": 1e-3, "attention_features": 8},
    "ranking": {"top_k": 2},
    "mining": {
        "threshold": 0.05,
        "positive_fraction": 0.5,
        "negative_fraction": 0.3,
        "max_slide_share": 1.0,
    },
    "finetune": {
        "epochs": 1,
        "warmup_epochs": 0,
        "batch_tiles": 4,
        "projection_features": 4,
        "freeze_layers": 0,
    },
    "compute": {"threads": 1},
    "tune": {
        "startup_trials": 2,
        "space": {
            "ranking.margin": {"low": 0.0, "high": 1.0},
            "mining.negative_fraction": {"low": 0.1, "high": 0.9, "log": True},
        },
    },
}

SLIDE = {
    "vendor": "aperio",
    "mpp_x": 1.0,
    "mpp_y": 1.0,
    "width": 640,
    "height": 480,
    "bounds_x": 0,
    "bounds_y": 0,
    "bounds_width": 640,
    "bounds_height": 480,
    "origin": "auto",
    "mask": "",
    "mask_digest": "",
}
"""What all slides of the cohort have in common."""


def tiny_params(**changes: Any) -> Params:
    return check_params({**RAW, **changes})


def make_upstream(data: Path) -> None:
    """Writes packs, index, slides, labels and encoder into `data`."""
    indices = []
    digests = []
    slides = []
    for split, count in SLIDES_OF.items():
        labels = [number % 2 for number in range(count)]
        ids = [f"{split}_{number}" for number in range(count)]
        LABELS.write(
            pd.DataFrame({"slide_id": ids, "label": labels}),
            data / "cohort" / "labels" / f"{split}.csv",
        )
        for number, (slide_id, label) in enumerate(zip(ids, labels, strict=True)):
            pack = _make_pack(data / "tiles" / "packs", split, number, label)
            content = pack.path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            indices.append(pack.index())
            digests.append({"slide_id": slide_id, "bytes": len(content), "sha256": digest})
            slides.append({**SLIDE, "slide_id": slide_id, "patient_id": slide_id, "split": split})
            slides[-1] |= {"path": f"{slide_id}.svs", "fingerprint": slide_id}
    TILES.write(pd.concat(indices), data / "tiles" / "index.parquet")
    PACKS.write(pd.DataFrame(digests), data / "tiles" / "packs.csv")
    SLIDES.write(pd.DataFrame(slides), data / "cohort" / "slides.parquet")
    (data / "cohort" / "annotations").mkdir()
    (data / "cohort" / "annotations" / "test_1.geojson").write_text("{}")
    MINED.write(MINED.empty(), data / "mined" / "0" / "mined.parquet")
    (data.parent / "extra").mkdir()
    VETOES.write(VETOES.empty(), data.parent / "vetoes" / "vetoes.csv")
    save_encoder(
        make_encoder(Encoder(name="test_resnet", weights="random")), data / "encoders" / "0"
    )


def _make_pack(folder: Path, split: str, number: int, label: int) -> Pack:
    """The pack of a slide; every third tile of a positive one is redder."""
    generator = np.random.default_rng([len(split), number])
    tiles = []
    for tile in range(5 + number):
        pixels = generator.normal(150, 40, (TILE_PX, TILE_PX, 3))
        pixels[..., 0] += 25 * label * (tile % 3 == 0)
        jpeg = encode(pixels.clip(0, 255).astype(np.uint8), 90)
        tiles.append(PackTile(tile * 16, 0, 1.0, jpeg))
    path = folder / f"{split}_{number}.h5"
    write_pack(
        path,
        tiles,
        slide_id=f"{split}_{number}",
        mpp=1.0,
        tile_px=TILE_PX,
        side=16,
        planned=len(tiles),
    )
    return Pack(path)
