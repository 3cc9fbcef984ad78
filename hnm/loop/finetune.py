"""The step `finetune`: the encoder of the round before, fine-tuned on the mined tiles."""

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
from hnm.loop.paths import FinetuneFiles
from hnm.mining.extra import OWN, extra_negatives
from hnm.tables import MINED


def finetune_encoder(
    files: FinetuneFiles,
    *,
    finetune: params.Finetune,
    mining: params.Mining,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> tuple[list[dict[str, float]], int]:
    """Writes the round's encoder and its history. Where the policy is to mine nothing, it writes
    the encoder of the round before.

    A training that collapsed is logged as a warning. Of several processes (`compute.processes`) the
    first one writes.

    Returns:
        The history, empty where nothing was trained or another process returns it, and the number
        of tiles that the encoder learnt from.

    Raises:
        FinetuneError: nothing was mined, although the policy asks for it.
    """
    machine = set_up_torch(compute)
    mined = MINED.read(files.mined).sort_values(["slide_id", "tile", "role"], ignore_index=True)
    encoder = load_encoder(files.previous)
    if mining.policy == "none":
        if first_process():
            save_encoder(encoder, files.folder)
        return [], 0
    if mined.empty:
        raise FinetuneError(
            f"{files.mined} is empty: nothing was mined; lower mining.threshold or raise the"
            " fractions"
        )
    learnt = with_extra(mined, files.extra, files.packs, mining)
    packs = Packs(files.packs)
    names = learnt["pack"].to_numpy(np.str_)
    tiles = learnt["tile"].to_numpy(np.int64)
    roles = np.where(learnt["role"] == "positive", POSITIVE, NEGATIVE)
    with joined(machine, compute.processes) as machine:
        history = fit_encoder(
            encoder,
            lambda rows: packs.tiles(names[rows], tiles[rows]),
            roles,
            finetune,
            machine,
            on_epoch,
        )
    if not first_process():
        return [], len(tiles)
    if collapse := collapse_of(history, finetune):
        logging.getLogger(__name__).warning(collapse)
    save_encoder(encoder, files.folder)
    write_history(history, files.folder / "history.csv")
    return history, len(tiles)


def with_extra(
    mined: pd.DataFrame, extra: Path, packs: Path, mining: params.Mining
) -> pd.DataFrame:
    """Returns what the encoder learns from: role, tile and `pack` of the tiles of a `MINED` table,
    then of the hard negatives of other projects.

    `pack` is the slide's id, or for another project's slide the absolute path of its pack without
    its suffix. `Packs` joins it to its folder, and an absolute path wins, so that no two slides are
    taken for one, whatever their ids.
    """
    tiles = mined.assign(pack=mined["slide_id"])
    if mining.extra:
        others = extra_negatives(extra, mining.extra, packs)
        tiles = pd.concat([tiles, others[~others[OWN]]], ignore_index=True)
    return tiles[["role", "tile", "pack"]]
