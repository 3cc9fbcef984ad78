"""A model folder with a random encoder and a head that calls red tiles positive, for tests that
predict.
"""

from pathlib import Path
from typing import Any

import torch

from hnm.learning.encoder import make_encoder, save_encoder
from hnm.learning.heads import make_head, save_head
from hnm.params import Compute, Embed, Encoder, Head, Tiles, Tissue
from hnm.prediction.model import ModelRecord, write_model

TILE_PX = 32
HEAD = Head(kind="mean", attention_features=8)
RECORD: dict[str, Any] = {
    "cohort": "tiny",
    "round": "1",
    "threshold": 0.375,
    "mpp_from_objective": False,
    "tissue": Tissue(mpp=8.0, min_area_um2=1000.0),
    "tiles": Tiles(mpp=1.0, tile_px=TILE_PX, min_tissue=0.5),
    "embed": Embed(batch_tiles=8),
    "compute": Compute(threads=1),
    "validation": {"auc": 0.875, "auc_low": 0.75, "auc_high": 1.0, "log_loss": 0.5},
    "versions": {"data/mined/1/mined.parquet": "0f" * 16},
    "commit": "c0ffee",
}


def make_parts(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files of an encoder and of a head in `folder`, as the stages leave them, by name."""
    encoder = make_encoder(Encoder(name="test_resnet", weights="random"))
    head = make_head(encoder.record.features, HEAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head.standardise(
            torch.rand(encoder.record.features), torch.rand(encoder.record.features) * 0.01
        )
    save_encoder(encoder, folder / "encoder")
    save_head(head, HEAD, folder / "head")
    for part in ("encoder", "head"):
        (folder / part / "history.csv").write_text("epoch,loss\n1,0.5\n")
    return tuple(
        {file.name: file for file in (folder / part).iterdir()} for part in ("encoder", "head")
    )  # type: ignore[return-value]


def make_model(folder: Path, **changes: Any) -> Path:
    """A model folder in `folder`/model."""
    write_model(
        ModelRecord(**{**RECORD, **changes}), *make_parts(folder / "parts"), folder / "model"
    )
    return folder / "model"
