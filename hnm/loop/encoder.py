"""The step `encoder`: round 0's encoder, from pretrained weights or by SimCLR on the cohort's
train tiles.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.compute import first_process, joined, set_up_torch
from hnm.learning.encoder import TileEncoder, load_encoder, make_encoder, save_encoder
from hnm.learning.history import OnEpoch, write_history
from hnm.learning.training.fit_simclr import fit_simclr
from hnm.loop.packs import Packs
from hnm.loop.paths import EncoderFiles
from hnm.seeds import seed_of
from hnm.tables import LABELS


def first_encoder(
    files: EncoderFiles,
    *,
    encoder: params.Encoder,
    simclr: params.Simclr,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Writes round 0's encoder, and its history where it was trained.

    Pretrained weights read no tile. Of several processes (`compute.processes`) the first one
    writes.

    Returns:
        The history, empty where nothing was trained or another process returns it.

    Raises:
        EncoderError: the weights lie elsewhere, cannot be had or do not fit.
    """
    check_place(encoder, files.weights)
    machine = set_up_torch(compute)
    start = imported_encoder(encoder) if is_imported(encoder) else make_encoder(encoder)
    if encoder.source == "pretrained":
        if first_process():
            save_encoder(start, files.folder)
        return []
    packs = Packs(files.packs)
    slide_ids, tiles = _drawn_tiles(files, packs, simclr)
    with joined(machine, compute.processes) as machine:
        history = fit_simclr(
            start,
            lambda rows: packs.tiles(slide_ids[rows], tiles[rows]),
            len(tiles),
            simclr,
            machine,
            on_epoch,
        )
    if not first_process():
        return []
    save_encoder(start, files.folder)
    write_history(history, files.folder / "history.csv")
    return history


def _drawn_tiles(
    files: EncoderFiles, packs: Packs, simclr: params.Simclr
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Returns the tiles of train slides that SimCLR learns from, `simclr.max_tiles` at most: the
    slide id and the number of each.
    """
    train = [
        slide_id
        for slide_id in sorted(LABELS.read(files.train_labels)["slide_id"])
        if (files.packs / f"{slide_id}.h5").exists()
    ]
    counts = [len(packs.pack(slide_id)) for slide_id in train]
    slide_ids = np.repeat(np.array(train, dtype=np.str_), counts)
    tiles = np.concatenate([np.arange(count) for count in (0, *counts)])
    generator = np.random.default_rng(seed_of(simclr.seed, "simclr tiles"))
    drawn = np.sort(generator.permutation(len(tiles))[: simclr.max_tiles])
    return slide_ids[drawn], tiles[drawn]


def weights_path(section: params.Encoder) -> Path | None:
    """Returns the file or folder that the weights come from; None where `section.weights` is one of
    the words.
    """
    return None if section.weights in {"package", "hub", "random"} else Path(section.weights)


def check_place(section: params.Encoder, weights: Path) -> None:
    """Raises `EncoderError` where the weights come from a path outside of the folder `weights`.

    That folder is the stage's dependency: elsewhere the weights could change unseen. A link to a
    file is as good as the file, as DVC hashes what it leads to. DVC does not look into a linked
    folder.
    """
    path = weights_path(section)
    if path is None:
        return
    folder = path if path.is_dir() else path.parent
    if not folder.resolve().is_relative_to(weights.resolve()):
        bring = "cp -r" if path.is_dir() else "ln -s"
        raise EncoderError(
            f"encoder.weights={section.weights} does not lie in {weights}/, so dvc repro would not"
            f" notice when it changes; bring it there ({bring} {path.absolute()} {weights}/) and"
            f" set encoder.weights to {weights}/{path.name}"
        )


def is_imported(section: params.Encoder) -> bool:
    """Returns whether the weights are a folder, as a project of hnm writes it."""
    path = weights_path(section)
    return path is not None and path.is_dir()


def imported_encoder(section: params.Encoder) -> TileEncoder:
    """Returns the encoder in the folder `section.weights`, with the normalisation that it was
    trained with. Its record names the digest of the folder's encoder.

    Raises:
        EncoderError: the folder holds no encoder, or one of another architecture than
            `section.name`.
    """
    folder = Path(section.weights)
    encoder = load_encoder(folder)
    if encoder.record.name != section.name:
        raise EncoderError(
            f"{folder} holds an encoder {encoder.record.name!r}, but encoder.name={section.name!r};"
            " set encoder.name to it"
        )
    record = replace(encoder.record, weights=f"encoder {encoder.digest}")
    return TileEncoder(encoder.backbone, record).eval()
