"""The encoder of the round before, fine-tuned on the mined tiles."""

import logging
from pathlib import Path

import numpy as np

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.compute import first_process, joined, set_up_torch
from hnm.learning.encoder import load_encoder, save_encoder
from hnm.learning.fit_encoder import NEGATIVE, POSITIVE, collapse_of, fit_encoder
from hnm.learning.history import OnEpoch, write_history
from hnm.loop.packs import Packs
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

    A training that collapsed is logged as a warning. Of several processes (`compute.processes`) the first one writes.

    Returns:
        The history, empty where nothing was trained or another process tells of it, and the number of mined tiles.
    """
    machine = set_up_torch(compute)
    table = MINED.read(mined).sort_values(["slide_id", "tile", "role"], ignore_index=True)
    encoder = load_encoder(previous)
    if mining.policy == "none":
        if first_process():
            save_encoder(encoder, folder)
        return [], 0
    if table.empty:
        raise FinetuneError(f"{mined} is empty: nothing was mined; lower mining.threshold or raise the fractions")
    supply, slide_ids, tiles = Packs(packs), table["slide_id"].to_numpy(np.str_), table["tile"].to_numpy(np.int64)
    roles = np.where(table["role"] == "positive", POSITIVE, NEGATIVE)
    with joined(machine, compute.processes) as machine:
        history = fit_encoder(encoder, lambda rows: supply.tiles(slide_ids[rows], tiles[rows]), roles, finetune, machine, on_epoch)
    if not first_process():
        return [], len(tiles)
    if collapse := collapse_of(history, finetune):
        logging.getLogger(__name__).warning(collapse)
    save_encoder(encoder, folder)
    write_history(history, folder / "history.csv")
    return history, len(tiles)
