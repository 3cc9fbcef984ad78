"""SimCLR: its batches, what it changes, that it learns."""

import numpy as np
import pytest
import torch

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.compute import CPU
from hnm.learning.encoder import TileEncoder, make_encoder
from hnm.learning.training.fit_simclr import fit_simclr, tile_batches

SECTION = params.Simclr(epochs=4, batch_tiles=8, learning_rate=1e-3, projection_features=16)
TILES = (
    np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3)).astype(np.uint8)
    // np.array([1, 2, 3] * 6, np.uint8)[:, None, None, None]
)


def encoder() -> TileEncoder:
    return make_encoder(params.Encoder(name="test_resnet", weights="random"))


def test_batches_are_of_one_size_and_show_no_tile_twice() -> None:
    first, second = (tile_batches(11, 4, 0, epoch) for epoch in (1, 2))
    assert [len(rows) for rows in first] == [4, 4] and len(set(np.concatenate(first).tolist())) == 8
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    assert [sorted(rows.tolist()) for rows in tile_batches(3, 4, 0, 1)] == [[0, 1, 2]]


def test_it_learns_to_find_the_other_view_and_tells_of_each_epoch() -> None:
    heard = []
    trained, before = encoder(), encoder().backbone.state_dict()
    history = fit_simclr(
        trained,
        TILES.__getitem__,
        len(TILES),
        SECTION,
        CPU,
        lambda epoch, metrics: heard.append((epoch, metrics["loss"])),
    )
    assert heard == [(row["epoch"], row["loss"]) for row in history] and [
        row["epoch"] for row in history
    ] == [1, 2, 3, 4]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert history[2]["learning_rate"] == pytest.approx(5e-4)
    moved = {
        name
        for name, value in trained.backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"layer1.0.conv1.weight", "bn1.running_mean"} <= moved and not trained.training


def test_the_temperature_is_the_losses() -> None:
    losses = {}
    for temperature in (0.1, 1000.0):
        section = SECTION.model_copy(
            update={"epochs": 1, "learning_rate": 1e-12, "temperature": temperature}
        )
        losses[temperature] = fit_simclr(
            encoder(), TILES.__getitem__, len(TILES), section, CPU, lambda epoch, metrics: None
        )[0]["loss"]
    assert (
        losses[1000.0] == pytest.approx(np.log(15), abs=0.005)
        and abs(losses[0.1] - np.log(15)) > 0.1
    )


def test_without_tiles_it_says_what_to_set() -> None:
    with pytest.raises(
        EncoderError,
        match=(
            r"encoder.source=simclr needs tiles of train slides, but there are 1; set"
            r" encoder.source to pretrained"
        ),
    ):
        fit_simclr(encoder(), TILES.__getitem__, 1, SECTION, CPU, lambda epoch, metrics: None)
