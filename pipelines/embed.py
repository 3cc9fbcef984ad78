"""Stage `embed`: every tile to its feature, with the round's encoder."""

from pathlib import Path

import torch

from hnm import params
from hnm.learning import features as feature_files
from hnm.learning.embed import embed as embed_tiles
from hnm.learning.encoder import encoder_digest, load_encoder, pick_device
from hnm.slides.pack import Pack
from hnm.store import code_version, digest_of, key_of, project_store
from hnm.tables import TILES
from pipelines import stage


def main(packs: Path, index: Path, encoder: Path, features: Path, *, embed: params.Embed, compute: params.Compute) -> None:
    """Writes one features file a slide; slides whose features are kept from an earlier run are not embedded again."""
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True)
    store = project_store()
    device = pick_device(compute.device)
    causes = {
        "encoder": encoder_digest(encoder),
        "embed": embed.model_dump(),
        "compute": {"device": device.type, "threads": compute.threads},
        "code": code_version("pipelines.embed"),
    }
    slide_ids = sorted(TILES.read(index)["slide_id"].unique())
    kept = {s: store.path("features", key_of(pack=digest_of(packs / f"{s}.h5"), **causes), ".h5") for s in slide_ids}
    missing = [slide_id for slide_id in slide_ids if not kept[slide_id].exists()]
    if missing:
        opened = [Pack(packs / f"{slide_id}.h5") for slide_id in missing]
        made = embed_tiles(
            load_encoder(encoder),
            [len(pack) for pack in opened],
            lambda slide, first, end: opened[slide].tiles(range(first, end)),
            batch_tiles=embed.batch_tiles,
            device=device,
        )
        for slide_id, pack, rows in zip(missing, opened, made, strict=True):
            feature_files.write(rows.astype(embed.dtype), pack.coords, kept[slide_id])
    features.mkdir(parents=True, exist_ok=True)
    for slide_id in slide_ids:
        store.link(kept[slide_id], features / f"{slide_id}.h5")
    print(f"embedded {len(missing)} of {len(slide_ids)} slides; the others were kept from an earlier run", flush=True)


if __name__ == "__main__":
    stage.run(main)
