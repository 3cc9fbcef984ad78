"""Stage `embed`: every tile to its feature, with the round's encoder."""

from pathlib import Path

from hnm.loop.embed import embed_slides
from hnm.params import Compute, Embed
from hnm.store import project_store
from pipelines import stage


def main(
    packs: Path,
    pack_digests: Path,
    index: Path,
    encoder: Path,
    features: Path,
    *,
    embed: Embed,
    compute: Compute,
) -> None:
    """Writes one features file a slide; slides whose features are kept from an earlier run are not
    embedded again.
    """
    made, slides = embed_slides(
        packs, pack_digests, index, encoder, features, project_store(), embed=embed, compute=compute
    )
    print(
        f"embedded {made} of {slides} slides; the others were kept from an earlier run", flush=True
    )


if __name__ == "__main__":
    stage.run(main)
