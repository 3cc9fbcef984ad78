"""Stage `embed`: every tile to its feature, with the round's encoder."""

from hnm.loop.embed import embed_slides
from hnm.loop.paths import EmbedFiles
from hnm.params import Compute, Embed
from hnm.store import project_store
from pipelines import stage


def main(files: EmbedFiles, *, embed: Embed, compute: Compute) -> None:
    """Writes one features file a slide. A slide whose features an earlier run left in the store is
    not embedded again.
    """
    embedded, slides = embed_slides(files, project_store(), embed=embed, compute=compute)
    print(
        f"embedded {embedded} of {slides} slides; the others were kept from an earlier run",
        flush=True,
    )


if __name__ == "__main__":
    stage.run(main)
