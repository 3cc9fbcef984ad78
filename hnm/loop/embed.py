"""Every tile to its feature."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm import params
from hnm.code import code_version
from hnm.files import digest_of, key_of
from hnm.learning import features as feature_files
from hnm.learning.compute import set_up_torch
from hnm.learning.embed import embed as embed_tiles
from hnm.learning.encoder import encoder_digest, load_encoder
from hnm.loop.packs import Packs
from hnm.progress import followed
from hnm.store import Store
from hnm.tables import TILES


def embed_slides(packs: Path, index: Path, encoder: Path, features: Path, store: Store, *, embed: params.Embed, compute: params.Compute) -> tuple[int, int]:
    """Writes one features file a slide into the folder `features`; a slide that `store` has is not embedded again.

    Returns:
        How many slides were embedded, and how many there are.
    """
    machine = set_up_torch(compute)
    causes = {
        "encoder": encoder_digest(encoder),
        "embed": embed.model_dump(),
        "compute": {"device": machine.device.type, "precision": machine.precision, "threads": compute.threads},
        "code": code_version("hnm.loop.embed"),
    }
    slide_ids = sorted(TILES.read(index)["slide_id"].unique())
    kept = {s: store.path("features", key_of(pack=digest_of(packs / f"{s}.h5"), **causes), ".h5") for s in slide_ids}
    store.use(kept.values())
    missing = [slide_id for slide_id in slide_ids if not store.holds(kept[slide_id], feature_files.read)]
    if missing:
        supply = Packs(packs)
        made = embed_tiles(
            load_encoder(encoder),
            [len(supply.pack(slide_id)) for slide_id in missing],
            lambda slide, first, end: supply.pack(missing[slide]).tiles(range(first, end)),
            batch_tiles=embed.batch_tiles,
            machine=machine,
            compiled=embed.compile,
        )
        embedded = zip(missing, made, strict=True)
        for slide_id, rows in followed(embedded, slides=len(missing), doing="embedding tiles", line=_line):
            feature_files.write(rows.astype(embed.dtype), supply.pack(slide_id).coords, kept[slide_id])
    features.mkdir(parents=True, exist_ok=True)
    for slide_id in slide_ids:
        store.link(kept[slide_id], features / f"{slide_id}.h5")
    return len(missing), len(slide_ids)


def _line(embedded: tuple[str, NDArray[np.float32]]) -> tuple[str, int]:
    slide_id, rows = embedded
    return f"{slide_id}: {len(rows)} tiles", len(rows)
