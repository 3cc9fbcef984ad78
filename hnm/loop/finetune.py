"""The encoder of the round before, fine-tuned on the mined tiles."""

import logging
from pathlib import Path

import numpy as np

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.compute import set_up_torch
from hnm.learning.encoder import load_encoder, save_encoder
from hnm.learning.fit_encoder import NEGATIVE, POSITIVE, collapse_of, fit_encoder
from hnm.learning.history import OnEpoch, write_history
from hnm.slides.pack import Pack
from hnm.tables import MINED


def finetune_encoder(
    mined: Path,
    packs: Path,
    previous: Path,
    folder: Path,
    *,
    finetune: params.Finetune,
    mining: params.Mining,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> tuple[list[dict[str, float]], int]:
    """Writes the round's encoder and its history into `folder`; where the policy is to mine nothing, the encoder of the round before.

    A training that collapsed is logged as a warning.

    Returns:
        The history, empty where nothing was trained, and the number of mined tiles.
    """
    machine = set_up_torch(compute)
    table = MINED.read(mined).sort_values(["slide_id", "tile", "role"], ignore_index=True)
    encoder = load_encoder(previous)
    if mining.policy == "none":
        save_encoder(encoder, folder)
        return [], 0
    if table.empty:
        raise FinetuneError(f"{mined} is empty: nothing was mined; lower mining.threshold or raise the fractions")
    tiles = np.concatenate([Pack(packs / f"{slide_id}.h5").tiles(own["tile"].tolist()) for slide_id, own in table.groupby("slide_id", sort=True)])
    roles = np.where(table["role"] == "positive", POSITIVE, NEGATIVE)
    history = fit_encoder(encoder, tiles, roles, finetune, machine, on_epoch)
    if collapse := collapse_of(history, finetune):
        logging.getLogger(__name__).warning(collapse)
    save_encoder(encoder, folder)
    write_history(history, folder / "history.csv")
    return history, len(tiles)
