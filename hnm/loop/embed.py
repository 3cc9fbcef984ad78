"""Every tile to its feature."""

from pathlib import Path

from hnm import params
from hnm.learning import features as feature_files
from hnm.learning.compute import set_up_torch
from hnm.learning.embed import embed as embed_tiles
from hnm.learning.encoder import encoder_digest, load_encoder
from hnm.loop.packs import Packs
from hnm.store import Store, code_version, digest_of, key_of
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
    missing = [slide_id for slide_id in slide_ids if not kept[slide_id].exists()]
    if missing:
        supply = Packs(packs)
        made = embed_tiles(
            load_encoder(encoder),
            [len(supply.pack(slide_id)) for slide_id in missing],
            lambda slide, first, end: supply.pack(missing[slide]).tiles(range(first, end)),
            batch_tiles=embed.batch_tiles,
            machine=machine,
        )
        for slide_id, rows in zip(missing, made, strict=True):
            feature_files.write(rows.astype(embed.dtype), supply.pack(slide_id).coords, kept[slide_id])
    features.mkdir(parents=True, exist_ok=True)
    for slide_id in slide_ids:
        store.link(kept[slide_id], features / f"{slide_id}.h5")
    return len(missing), len(slide_ids)
