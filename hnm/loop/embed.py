"""The step `embed`: every tile to its feature, with the encoder of a round."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm import params
from hnm.causes import keys_of
from hnm.errors import REMAKE, TableError
from hnm.learning import features as feature_files
from hnm.learning.compute import Machine, set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import encoder_digest, load_encoder
from hnm.loop.packs import Packs
from hnm.loop.paths import EmbedFiles
from hnm.progress import followed
from hnm.store import Store
from hnm.tables import PACKS, TILES


def embed_slides(
    files: EmbedFiles, store: Store, *, embed: params.Embed, compute: params.Compute
) -> tuple[int, int]:
    """Writes the features of each slide. What `store` holds is not embedded again.

    The digests of the packs come from the table `PACKS`: no pack is read to learn that its features
    are there.

    Returns:
        How many slides were embedded, and how many there are.

    Raises:
        TableError: the packs are not those of the table `PACKS`, by their ids and sizes.
    """
    machine = set_up_torch(compute)
    slide_ids = sorted(TILES.read(files.index)["slide_id"].unique())
    digests = digests_of(files.packs, files.pack_digests, slide_ids)
    key = keys_of("hnm.loop.embed", compute.device)
    inputs = {
        "encoder": encoder_digest(files.encoder),
        "embed": embed.model_dump(),
        "compute": {
            "device": machine.device.type,
            "precision": machine.precision,
            "threads": compute.threads,
        },
    }
    stored = {
        slide_id: store.path("features", key(pack=digests[slide_id], **inputs), ".h5")
        for slide_id in slide_ids
    }
    store.use(stored.values())
    missing = {
        slide_id: path
        for slide_id, path in stored.items()
        if not store.holds(path, feature_files.read)
    }
    if missing:
        _embed(files, missing, embed, machine)
    files.features.mkdir(parents=True, exist_ok=True)
    for slide_id, path in stored.items():
        store.link(path, files.features / f"{slide_id}.h5")
    return len(missing), len(stored)


def _embed(
    files: EmbedFiles, targets: Mapping[str, Path], embed: params.Embed, machine: Machine
) -> None:
    """Embeds the slides of `targets`, each into the file that it names."""
    packs = Packs(files.packs)
    slide_ids = list(targets)
    features = embed_tiles(
        load_encoder(files.encoder),
        [len(packs.pack(slide_id)) for slide_id in slide_ids],
        lambda slide, first, end: packs.pack(slide_ids[slide]).tiles(range(first, end)),
        batch_tiles=embed.batch_tiles,
        machine=machine,
        compiled=embed.compile,
    )
    embedded = followed(
        zip(slide_ids, features, strict=True),
        slides=len(slide_ids),
        doing="embedding tiles",
        line=_line,
    )
    for slide_id, rows in embedded:
        coords = packs.pack(slide_id).coords
        feature_files.write(rows.astype(embed.dtype), coords, targets[slide_id])


def digests_of(packs: Path, pack_digests: Path, slide_ids: list[str]) -> dict[str, str]:
    """Returns the SHA-256 of the pack of each slide, by the table `PACKS` at `pack_digests`.

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
    """Returns what the log says of an embedded slide, and the number of its tiles."""
    slide_id, rows = embedded
    return f"{slide_id}: {len(rows)} tiles", len(rows)
