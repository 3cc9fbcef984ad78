"""Stage `encoder`: round 0's encoder, which saw no labels and no mined tiles."""

from hnm.loop.encoder import first_encoder
from hnm.loop.launch import share_among_processes
from hnm.loop.paths import EncoderFiles
from hnm.params import Compute, Encoder, Simclr
from hnm.tables import MINED
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    files: EncoderFiles, *, encoder: Encoder, simclr: Simclr, compute: Compute, tracker: Tracker
) -> None:
    """Writes the encoder, and a table of mined tiles without rows. Only SimCLR reads tiles, those
    of the train slides.
    """
    MINED.write(MINED.empty(), files.mined)
    history = first_encoder(
        files, encoder=encoder, simclr=simclr, compute=compute, on_epoch=tracker.epoch
    )
    if not history:
        return
    tracker.model(files.folder, "encoder")
    print(
        f"SimCLR: loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f} in {len(history)}"
        " epochs",
        flush=True,
    )


if __name__ == "__main__":
    share_among_processes("pipelines.encoder")
    stage.run(main)
