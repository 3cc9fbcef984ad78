"""Round 0's encoder: pretrained weights, or SimCLR on the cohort's own train tiles."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.compute import first_process, joined, set_up_torch
from hnm.learning.encoder import TileEncoder, load_encoder, make_encoder, save_encoder
from hnm.learning.history import OnEpoch, write_history
from hnm.learning.training.fit_simclr import fit_simclr
from hnm.loop.packs import Packs
from hnm.seeds import seed_of
from hnm.tables import LABELS


def first_encoder(
    packs: Path,
    train_labels: Path,
    weights: Path,
    folder: Path,
    *,
    encoder: params.Encoder,
    simclr: params.Simclr,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Writes round 0's encoder into `folder`, and its history where it was trained.

    Of `train_labels` the slide ids alone are used: they say which slides are train. Pretrained
    weights read no tile. Of several processes (`compute.processes`) the first one writes.

    Args:
        weights: the folder in which weights from files lie.

    Returns:
        The history, empty where nothing was trained or another process tells of it.

    Raises:
        EncoderError: the weights lie elsewhere, cannot be had or do not fit.
    """
    check_place(encoder, weights)
    machine = set_up_torch(compute)
    made = imported_encoder(encoder) if is_imported(encoder) else make_encoder(encoder)
    if encoder.source == "pretrained":
        if first_process():
            save_encoder(made, folder)
        return []
    supply = Packs(packs)
    train = [
        slide_id
        for slide_id in sorted(LABELS.read(train_labels)["slide_id"])
        if (packs / f"{slide_id}.h5").exists()
    ]
    counts = [len(supply.pack(slide_id)) for slide_id in train]
    slide_ids, tiles = (
        np.repeat(np.array(train, dtype=np.str_), counts),
        np.concatenate([np.arange(count) for count in (0, *counts)]),
    )
    chosen = np.sort(
        np.random.default_rng(seed_of(simclr.seed, "simclr tiles")).permutation(len(tiles))[
            : simclr.max_tiles
        ]
    )
    slide_ids, tiles = slide_ids[chosen], tiles[chosen]
    with joined(machine, compute.processes) as machine:
        history = fit_simclr(
            made,
            lambda rows: supply.tiles(slide_ids[rows], tiles[rows]),
            len(tiles),
            simclr,
            machine,
            on_epoch,
        )
    if not first_process():
        return []
    save_encoder(made, folder)
    write_history(history, folder / "history.csv")
    return history


def weights_path(section: params.Encoder) -> Path | None:
    """The file or folder that the weights come from; None where `section.weights` is one of the
    words.
    """
    return None if section.weights in {"package", "hub", "random"} else Path(section.weights)


def check_place(section: params.Encoder, weights: Path) -> None:
    """Raises `EncoderError` where the weights come from a path that is not in the folder `weights`,
    the stage's dependency: elsewhere they could change unseen.

    A link to a file is as good as the file: DVC hashes what it leads to. Into a linked folder it
    does not look.
    """
    path = weights_path(section)
    if path is not None and not (path if path.is_dir() else path.parent).resolve().is_relative_to(
        weights.resolve()
    ):
        bring = "cp -r" if path.is_dir() else "ln -s"
        raise EncoderError(
            f"encoder.weights={section.weights} does not lie in {weights}/, so dvc repro would not"
            f" notice when it changes; bring it there ({bring} {path.absolute()} {weights}/) and"
            f" set encoder.weights to {weights}/{path.name}"
        )


def is_imported(section: params.Encoder) -> bool:
    """Whether the weights are a folder that a project of hnm wrote, and not a file or one of the
    words.
    """
    path = weights_path(section)
    return path is not None and path.is_dir()


def imported_encoder(section: params.Encoder) -> TileEncoder:
    """The encoder in the folder `section.weights`, with the normalisation that it was trained with;
    its record keeps the digest of what it was.

    Raises:
        EncoderError: the folder holds no encoder, or one of another architecture than
        `section.name`.
    """
    folder = Path(section.weights)
    found = load_encoder(folder)
    if found.record.name != section.name:
        raise EncoderError(
            f"{folder} holds an encoder {found.record.name!r}, but encoder.name={section.name!r};"
            " set encoder.name to it"
        )
    return TileEncoder(
        found.backbone, replace(found.record, weights=f"encoder {found.digest}")
    ).eval()
