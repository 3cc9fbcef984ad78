"""Every tile to its feature."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm import params
from hnm.causes import keys_of
from hnm.errors import REMAKE, TableError
from hnm.learning import features as feature_files
from hnm.learning.compute import set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import encoder_digest, load_encoder
from hnm.loop.packs import Packs
from hnm.progress import followed
from hnm.store import Store
from hnm.tables import PACKS, TILES


def embed_slides(
    packs: Path,
    pack_digests: Path,
    index: Path,
    encoder: Path,
    features: Path,
    store: Store,
    *,
    embed: params.Embed,
    compute: params.Compute,
) -> tuple[int, int]:
    """Writes one features file a slide into the folder `features`; a slide that `store` has is not
    embedded again.

    The digests of the packs come from the table `PACKS`: no pack is read to learn that its features
    are there.

    Returns:
        How many slides were embedded, and how many there are.

    Raises:
        TableError: the packs are not those of the table `pack_digests`, by their ids and sizes.
    """
    machine = set_up_torch(compute)
    inputs = {
        "encoder": encoder_digest(encoder),
        "embed": embed.model_dump(),
        "compute": {
            "device": machine.device.type,
            "precision": machine.precision,
            "threads": compute.threads,
        },
    }
    slide_ids = sorted(TILES.read(index)["slide_id"].unique())
    digests = digests_of(packs, pack_digests, slide_ids)
    key = keys_of("hnm.loop.embed", compute.device)
    kept = {
        slide_id: store.path("features", key(pack=digests[slide_id], **inputs), ".h5")
        for slide_id in slide_ids
    }
    store.use(kept.values())
    missing = [
        slide_id for slide_id in slide_ids if not store.holds(kept[slide_id], feature_files.read)
    ]
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
        for slide_id, rows in followed(
            embedded, slides=len(missing), doing="embedding tiles", line=_line
        ):
            feature_files.write(
                rows.astype(embed.dtype), supply.pack(slide_id).coords, kept[slide_id]
            )
    features.mkdir(parents=True, exist_ok=True)
    for slide_id in slide_ids:
        store.link(kept[slide_id], features / f"{slide_id}.h5")
    return len(missing), len(slide_ids)


def digests_of(packs: Path, pack_digests: Path, slide_ids: list[str]) -> dict[str, str]:
    """Slide id -> SHA-256 of its pack, by the table `PACKS` at `pack_digests`.

    Raises:
        TableError: a slide is not in the table, or its pack is missing or has another size.
    """
    table = PACKS.read(pack_digests)
    digests = dict(zip(table["slide_id"], table["sha256"], strict=True))
    sizes = dict(zip(table["slide_id"], table["bytes"], strict=True))
    for slide_id in slide_ids:
        pack = packs / f"{slide_id}.h5"
        if slide_id not in sizes:
            raise TableError(
                f"{pack_digests} does not name the pack of {slide_id}; run the stage tiles (dvc"
                " repro)"
            )
        if not pack.exists():
            raise TableError(f"{pack} does not exist; run the stage tiles (dvc repro)")
        if (size := pack.stat().st_size) != sizes[slide_id]:
            raise TableError(
                f"{pack} has {size} bytes, not {sizes[slide_id]} as {pack_digests} says; {REMAKE}"
            )
    return {slide_id: digests[slide_id] for slide_id in slide_ids}


def _line(embedded: tuple[str, NDArray[np.float32]]) -> tuple[str, int]:
    slide_id, rows = embedded
    return f"{slide_id}: {len(rows)} tiles", len(rows)
