"""Fine-tuning: which tiles a step sees, who is an anchor when, what changes and what does not."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.compute import CPU, Machine
from hnm.learning.encoder import TileEncoder, make_encoder
from hnm.learning.training.fit_encoder import (
    NEGATIVE,
    POSITIVE,
    anchor_weights,
    collapse_of,
    fit_encoder,
    role_batches,
    role_losses,
    step_tiles,
)
from hnm.learning.training.losses import supervised_contrastive_loss
from hnm.learning.training.trainer import ReadTiles, _Standardise

SECTION = params.Finetune(
    epochs=3,
    warmup_epochs=1,
    batch_tiles=8,
    learning_rate=1e-3,
    projection_features=16,
    freeze_layers=0,
)


def encoder() -> TileEncoder:
    return make_encoder(params.Encoder(name="test_resnet", weights="random"))


def mined() -> tuple[ReadTiles, np.ndarray]:
    """12 dark and 5 light noisy tiles."""
    generator = np.random.default_rng(0)
    roles = np.array([NEGATIVE] * 12 + [POSITIVE] * 5)
    return (generator.integers(0, 80, (17, 32, 32, 3)) + 120 * roles[:, None, None, None]).astype(
        np.uint8
    ).__getitem__, roles


def no_one(epoch: int, metrics: object) -> None:
    pass


def test_a_step_takes_half_of_each_role_and_an_epoch_every_tile_of_the_larger() -> None:
    roles = np.array([POSITIVE] * 3 + [NEGATIVE] * 7)
    steps = list(role_batches(roles, params.Finetune(batch_tiles=4), epoch=1))
    assert [roles[rows].tolist() for rows in steps] == [
        [NEGATIVE, NEGATIVE, POSITIVE, POSITIVE]
    ] * 4
    seen = Counter(np.concatenate(steps).tolist())
    assert (
        all(seen[row] >= 1 for row in range(3, 10)) and sum(seen[row] for row in range(3, 10)) == 8
    )
    assert sorted(seen[row] for row in range(3)) == [2, 3, 3]


def test_a_step_takes_the_share_of_positives_asked_for() -> None:
    roles = np.array([POSITIVE] * 3 + [NEGATIVE] * 7)
    steps = list(role_batches(roles, params.Finetune(batch_tiles=5, positive_share=0.2), epoch=1))
    assert [roles[rows].tolist() for rows in steps] == [
        [NEGATIVE] * 4 + [POSITIVE]
    ] * 3  # 7 negatives fill two steps, 3 positives three
    seen = Counter(np.concatenate(steps).tolist())
    assert [seen[row] for row in range(3)] == [1, 1, 1] and sorted(
        seen[row] for row in range(3, 10)
    ) == [1, 1, 2, 2, 2, 2, 2]


@given(
    roles=st.lists(st.sampled_from([NEGATIVE, POSITIVE]), min_size=2, max_size=60).filter(
        lambda roles: len(set(roles)) == 2
    ),
    batch_tiles=st.integers(4, 24),
    share=st.floats(0.01, 0.99),
    epoch=st.integers(1, 3),
)
def test_every_tile_comes_and_none_again_before_all_others_of_its_role(
    roles: list[int], batch_tiles: int, share: float, epoch: int
) -> None:
    section = params.Finetune(batch_tiles=batch_tiles, positive_share=share)
    steps = [rows.tolist() for rows in role_batches(np.array(roles), section, epoch)]
    in_step = {POSITIVE: min(max(round(batch_tiles * share), 1), batch_tiles - 1)}
    in_step[NEGATIVE] = batch_tiles - in_step[POSITIVE]
    assert all(
        [roles[row] for row in step]
        == [NEGATIVE] * in_step[NEGATIVE] + [POSITIVE] * in_step[POSITIVE]
        for step in steps
    )
    spare = []
    for role in (NEGATIVE, POSITIVE):
        times = [
            sum(step.count(row) for step in steps) for row, of in enumerate(roles) if of == role
        ]
        assert min(times) >= 1 and max(times) - min(times) <= 1
        shown = [row for step in steps for row in step if roles[row] == role]
        for first in range(0, len(shown) - len(times) + 1, len(times)):  # one order after the other
            assert len(set(shown[first : first + len(times)])) == len(times)
        spare.append(len(shown) - len(times) < in_step[role])
    assert any(spare)  # one step fewer would leave out a tile


@pytest.mark.parametrize(
    ("share", "tiles"), [(0.5, (16, 16)), (0.2, (26, 6)), (0.001, (31, 1)), (0.999, (1, 31))]
)
def test_a_step_has_tiles_of_both_roles(share: float, tiles: tuple[int, int]) -> None:
    assert step_tiles(params.Finetune(batch_tiles=32, positive_share=share)) == tiles


def test_role_losses_are_the_contrast_with_each_role_as_anchor() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    roles = torch.tensor([NEGATIVE, POSITIVE, NEGATIVE, POSITIVE, POSITIVE, NEGATIVE])
    losses = role_losses(rows, roles, temperature=0.5)
    for role in (NEGATIVE, POSITIVE):
        assert losses[role] == supervised_contrastive_loss(
            rows, roles, roles == role, temperature=0.5
        )


def test_fine_tuning_lowers_the_loss_and_tells_of_each_epoch() -> None:
    heard = []
    history = fit_encoder(
        encoder(),
        *mined(),
        SECTION.model_copy(update={"epochs": 8}),
        CPU,
        lambda epoch, metrics: heard.append((epoch, metrics["loss"])),
    )
    assert heard == [(row["epoch"], row["loss"]) for row in history] and [
        row["epoch"] for row in history
    ] == list(range(1, 9))
    assert history[-1]["negative_loss"] < history[0]["negative_loss"] - 0.1
    assert collapse_of(history, SECTION) is None and history[-1]["spread"] > 0.02
    assert history[0]["loss"] == history[0]["negative_loss"]  # warm-up: negatives alone are anchors
    assert history[1]["loss"] == pytest.approx(
        (history[1]["negative_loss"] + history[1]["positive_loss"]) / 2
    )


def test_batch_statistics_stay_and_weights_move() -> None:
    tuned, before = encoder(), encoder().backbone.state_dict()
    fit_encoder(tuned, *mined(), SECTION, CPU, no_one)
    after = tuned.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])
    assert not tuned.training


def test_the_same_seed_gives_the_same_encoder_bit_by_bit() -> None:
    states = []
    for seed in (3, 3, 4):
        tuned = encoder()
        fit_encoder(
            tuned, *mined(), SECTION.model_copy(update={"seed": seed, "epochs": 1}), CPU, no_one
        )
        states.append(tuned.backbone.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layer1.0.conv1.weight"], states[2]["layer1.0.conv1.weight"])


def test_dropout_of_an_encoder_follows_the_seed_and_leaves_the_global_generator_alone() -> None:
    states = []
    for others in (0, 3):
        torch.rand(others)  # whatever the process drew before
        after = torch.random.get_rng_state()
        tuned = encoder()
        tuned.backbone.layer1 = torch.nn.Sequential(tuned.backbone.layer1, torch.nn.Dropout(0.5))
        fit_encoder(tuned, *mined(), SECTION.model_copy(update={"epochs": 1}), CPU, no_one)
        states.append(tuned.backbone.state_dict())
        assert torch.equal(torch.random.get_rng_state(), after)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_temperature_is_the_losses() -> None:
    """Without training to speak of: the hotter, the more alike all views look, until each is one of
    15 others.
    """
    losses = {}
    for temperature in (0.07, 1000.0):
        section = SECTION.model_copy(
            update={"epochs": 1, "learning_rate": 1e-12, "temperature": temperature}
        )
        losses[temperature] = fit_encoder(encoder(), *mined(), section, CPU, no_one)[0]["loss"]
    assert (
        losses[1000.0] == pytest.approx(np.log(15), abs=0.005)
        and abs(losses[0.07] - np.log(15)) > 0.1
    )


@pytest.mark.parametrize(("role", "name"), [(NEGATIVE, "hard negatives"), (POSITIVE, "positives")])
def test_a_mined_set_without_a_role_is_refused(role: int, name: str) -> None:
    read, roles = mined()
    with pytest.raises(
        FinetuneError, match=f"the mined set has no {name}; the contrast needs both roles"
    ):
        fit_encoder(encoder(), read, roles[roles != role], SECTION, CPU, no_one)


def test_a_loss_that_is_no_longer_finite_is_refused() -> None:
    with pytest.raises(
        FinetuneError,
        match=r"the contrastive loss is nan in epoch \d; lower finetune.learning_rate=1e\+20",
    ):
        fit_encoder(
            encoder(), *mined(), SECTION.model_copy(update={"learning_rate": 1e20}), CPU, no_one
        )


def test_bfloat16_trains_float32_weights_much_as_float32_does() -> None:
    losses = []
    for machine in (CPU, Machine(CPU.device, "bfloat16")):
        tuned = encoder()
        losses.append(
            fit_encoder(
                tuned,
                *mined(),
                SECTION.model_copy(update={"epochs": 1, "learning_rate": 1e-4}),
                machine,
                no_one,
            )[0]["loss"]
        )
        assert {weight.dtype for weight in tuned.parameters()} == {torch.float32}
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_frozen_layers_keep_their_weights_and_the_others_move() -> None:
    tuned, before = (
        encoder(),
        encoder().backbone.state_dict(),
    )  # test_resnet: a stem and four stages
    fit_encoder(
        tuned, *mined(), SECTION.model_copy(update={"freeze_layers": 3, "epochs": 1}), CPU, no_one
    )
    moved = {
        name.split(".")[0]
        for name, weight in tuned.backbone.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    assert moved == {"layer3", "layer4"}


def test_an_encoder_whose_every_layer_is_frozen_is_refused() -> None:
    with pytest.raises(
        FinetuneError,
        match=(
            r"finetune.freeze_layers=5 leaves nothing to train: test_resnet has 5 layers; lower it"
        ),
    ):
        fit_encoder(
            encoder(), *mined(), SECTION.model_copy(update={"freeze_layers": 5}), CPU, no_one
        )


@pytest.mark.parametrize(
    ("anchors", "weights"),
    [("negatives", [1.0, 0.0]), ("positives", [0.0, 1.0]), ("both", [0.5, 0.5])],
)
def test_the_anchors_are_the_negatives_in_the_warm_up_and_then_those_asked_for(
    anchors: str, weights: list[float]
) -> None:
    section = params.Finetune.model_validate({"warmup_epochs": 2, "anchors": anchors})
    assert [anchor_weights(section, epoch).tolist() for epoch in (1, 2, 3, 4)] == [
        [1.0, 0.0]
    ] * 2 + [weights] * 2


def test_anchors_choose_the_loss() -> None:
    section = SECTION.model_copy(update={"epochs": 1, "warmup_epochs": 0, "anchors": "positives"})
    (row,) = fit_encoder(encoder(), *mined(), section, CPU, no_one)
    assert row["loss"] == row["positive_loss"] != row["negative_loss"]


def test_roles_that_cannot_be_told_apart_collapse_and_it_is_said() -> None:
    tiles = np.random.default_rng(0).integers(0, 150, (24, 32, 32, 3)).astype(np.uint8)
    section = SECTION.model_copy(update={"learning_rate": 3e-3})
    history = fit_encoder(
        encoder(), tiles.__getitem__, np.array([NEGATIVE, POSITIVE] * 12), section, CPU, no_one
    )
    assert history[-1]["loss"] == pytest.approx(np.log(15), abs=0.01)
    warning = collapse_of(history, section)
    assert warning is not None and "ln(rows - 1) = 2.708 (it is 2.70" in warning
    assert (
        "raise finetune.freeze_layers=0 or finetune.temperature=0.07, lower"
        " finetune.learning_rate=0.003, or mine surer tiles" in warning
    )


def test_a_feature_that_no_tile_shows_at_first_is_not_blown_up() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    standardise = _Standardise(features)
    assert standardise(torch.tensor([[4.0, 0.5]])).tolist() == [[2.0, 0.5]]
