"""Pre-training round 0's encoder on the cohort's own tiles, without labels, by SimCLR."""

import numpy as np
import torch
from torch import Tensor

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.compute import Machine
from hnm.learning.encoder import TileEncoder
from hnm.learning.history import OnEpoch
from hnm.learning.training.losses import nt_xent_loss
from hnm.learning.training.trainer import ContrastTask, ReadTiles, Rows, train_by_contrast
from hnm.seeds import seed_of


def fit_simclr(
    encoder: TileEncoder,
    read: ReadTiles,
    count: int,
    section: params.Simclr,
    machine: Machine,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Trains `encoder` in place by `train_by_contrast`. Returns the history: one mapping for each
    epoch.

    A step draws two views of each of its tiles. Each view is to find the other view of its tile
    among all views of the step (Chen et al., A Simple Framework for Contrastive Learning of Visual
    Representations, 2020). Batch normalisation learns its statistics, as the tiles are a fair
    sample of the cohort.

    Args:
        encoder: the encoder to start from.
        read: reads the RGB tiles of rows from 0 to `count`.
        count: the number of tiles.
        section: the settings.
        machine: where, and in which precision, to train. The loss is computed in float32.
        on_epoch: is told of each epoch.

    Raises:
        EncoderError: there are fewer than two tiles.
        FinetuneError: the loss is no longer finite.
    """
    if count < 2:
        raise EncoderError(
            f"encoder.source=simclr needs tiles of train slides, but there are {count}; set"
            " encoder.source to pretrained"
        )

    def loss_of(projected: Tensor, rows: Rows, epoch: int) -> dict[str, Tensor]:
        tiles = torch.from_numpy(rows).to(projected.device)
        return {"loss": nt_xent_loss(projected, tiles, temperature=section.temperature)}

    task = ContrastTask(
        name="simclr",
        read=read,
        count=count,
        batches=lambda epoch: tile_batches(count, section.batch_tiles, section.seed, epoch),
        loss_of=loss_of,
        frozen_batch_norm=False,
    )
    return train_by_contrast(encoder, task, section, machine, on_epoch)


def tile_batches(count: int, batch_tiles: int, seed: int, epoch: int) -> list[Rows]:
    """Returns the rows of each step: all tiles in a random order, in batches of one size. Tiles
    that fill no batch are left out of the epoch.
    """
    order = np.random.default_rng(seed_of(seed, "simclr batches", epoch)).permutation(count)
    size = min(batch_tiles, count)
    return [order[first : first + size] for first in range(0, count - size + 1, size)]
