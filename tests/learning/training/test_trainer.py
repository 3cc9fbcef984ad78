"""The loop of the contrastive trainings: the learning rate, and the views."""

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from hnm import params
from hnm.learning.compute import CPU
from hnm.learning.encoder import make_encoder
from hnm.learning.training.trainer import ContrastTask, learning_rate, train_by_contrast
from hnm.learning.training.views import random_views


def test_a_cosine_falls_from_the_learning_rate_to_0_and_a_constant_stays() -> None:
    section = params.Finetune(epochs=4, learning_rate=0.2, schedule="cosine")
    assert [learning_rate(section, epochs) for epochs in (0, 1, 2, 4)] == pytest.approx(
        [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.0]
    )
    assert learning_rate(section.model_copy(update={"schedule": "constant"}), 3.5) == 0.2


def test_each_step_takes_the_rate_of_its_own_moment_and_draws_its_views_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = params.Finetune(
        epochs=2,
        learning_rate=0.2,
        schedule="cosine",
        batch_tiles=4,
        projection_features=4,
        weight_decay=0.25,
    )
    tiles = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    rates: list[float] = []
    decays: list[float] = []
    seeds: list[int] = []

    def step_taken(optimiser: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])
        decays.append(optimiser.param_groups[0]["weight_decay"])

    def views(pixels: torch.Tensor, section: params.Views, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return random_views(pixels, section, seed)

    monkeypatch.setattr("hnm.learning.training.trainer.random_views", views)
    hook = register_optimizer_step_post_hook(step_taken)
    try:
        task = ContrastTask(
            name="finetune",
            read=tiles.__getitem__,
            count=len(tiles),
            batches=lambda epoch: [np.arange(4)] * 2,
            loss_of=lambda projected, rows, epoch: {"loss": projected.square().mean()},
            frozen_batch_norm=True,
        )
        encoder = make_encoder(params.Encoder(name="test_resnet", weights="random"))
        train_by_contrast(encoder, task, section, CPU, lambda epoch, metrics: None)
    finally:
        hook.remove()
    assert rates == pytest.approx([learning_rate(section, epochs) for epochs in (0, 0.5, 1, 1.5)])
    assert decays == [0.25] * 4
    assert len(seeds) == len(set(seeds)) == 4 * 2
