"""The encoder of the round before, fine-tuned on the mined tiles."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.compute import first_process, joined, set_up_torch
from hnm.learning.encoder import load_encoder, save_encoder
from hnm.learning.history import OnEpoch, write_history
from hnm.learning.training.fit_encoder import NEGATIVE, POSITIVE, collapse_of, fit_encoder
from hnm.loop.packs import Packs
from hnm.mining.extra import OWN, extra_negatives
from hnm.tables import MINED


def finetune_encoder(
    mined: Path,
    packs: Path,
    extra: Path,
    previous: Path,
    folder: Path,
    *,
    finetune: params.Finetune,
    mining: params.Mining,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> tuple[list[dict[str, float]], int]:
    """Writes the round's encoder and its history into `folder`; where the policy is to mine
    nothing, the encoder of the round before.

    A training that collapsed is logged as a warning. Of several processes (`compute.processes`) the
    first one writes.

    Returns:
        The history, empty where nothing was trained or another process tells of it, and the number
        of tiles that were learnt from.
    """
    machine = set_up_torch(compute)
    table = MINED.read(mined).sort_values(["slide_id", "tile", "role"], ignore_index=True)
    encoder = load_encoder(previous)
    if mining.policy == "none":
        if first_process():
            save_encoder(encoder, folder)
        return [], 0
    if table.empty:
        raise FinetuneError(
            f"{mined} is empty: nothing was mined; lower mining.threshold or raise the fractions"
        )
    table = with_extra(table, extra, packs, mining)
    supply, slide_ids, tiles = (
        Packs(packs),
        table["pack"].to_numpy(np.str_),
        table["tile"].to_numpy(np.int64),
    )
    roles = np.where(table["role"] == "positive", POSITIVE, NEGATIVE)
    with joined(machine, compute.processes) as machine:
        history = fit_encoder(
            encoder,
            lambda rows: supply.tiles(slide_ids[rows], tiles[rows]),
            roles,
            finetune,
            machine,
            on_epoch,
        )
    if not first_process():
        return [], len(tiles)
    if collapse := collapse_of(history, finetune):
        logging.getLogger(__name__).warning(collapse)
    save_encoder(encoder, folder)
    write_history(history, folder / "history.csv")
    return history, len(tiles)


def with_extra(
    mined: pd.DataFrame, extra: Path, packs: Path, mining: params.Mining
) -> pd.DataFrame:
    """What is learnt from: role, tile and `pack` of the tiles of a `MINED` table, then of the hard
    negatives of other projects.

    `pack` is the slide's id, or for another project's slide the absolute path of its pack, which
    wins over the folder that `Packs` joins it to; so no two slides are taken for one, whatever
    their ids.
    """
    own = mined.assign(pack=mined["slide_id"])
    if not mining.extra:
        return own[["role", "tile", "pack"]]
    others = extra_negatives(extra, mining.extra, packs)
    return pd.concat([own, others[~others[OWN]]], ignore_index=True)[["role", "tile", "pack"]]
