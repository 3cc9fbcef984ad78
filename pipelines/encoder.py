"""Stage `encoder`: round 0's encoder, which saw no labels."""

from pathlib import Path

from hnm.experiments.tracking import Tracker
from hnm.loop.encoder import first_encoder
from hnm.params import Compute, Encoder, Simclr
from pipelines import stage


def main(packs: Path, train_labels: Path, folder: Path, *, encoder: Encoder, simclr: Simclr, compute: Compute, tracker: Tracker) -> None:
    """Writes the encoder; only SimCLR reads tiles, those of the train slides."""
    history = first_encoder(packs, train_labels, folder, encoder=encoder, simclr=simclr, compute=compute, on_epoch=tracker.epoch)
    if not history:
        return
    tracker.model(folder, "encoder")
    print(f"SimCLR: loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f} in {len(history)} epochs", flush=True)


if __name__ == "__main__":
    stage.run(main)
