"""Stage `encoder`: round 0's encoder, which saw no labels."""

from pathlib import Path

from hnm.learning.encoder import make_encoder, save_encoder
from hnm.params import Encoder
from pipelines import stage


def main(folder: Path, *, encoder: Encoder) -> None:
    """Makes the encoder and writes it to `folder`."""
    save_encoder(make_encoder(encoder), folder)


if __name__ == "__main__":
    stage.run(main)
