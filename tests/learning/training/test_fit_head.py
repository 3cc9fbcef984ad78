"""Training a head: which slides a step sees, which epoch is kept, what is refused."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import KINDS, HeadOutput, make_head
from hnm.learning.training.fit_head import LabelledSlide, fit_head, step_losses, steps_of, validate
from tests.support.exactness import assert_close

RANKING = params.Ranking(top_k=2, weight=1.0)
SECTION = params.Head(epochs=12, patience=12, learning_rate=5e-3, dropout=0.0, attention_features=8)


def cohort(count: int, seed: int) -> list[LabelledSlide]:
    """Slides of 6 to 9 tiles; two tiles of a positive slide are shifted."""
    generator = torch.Generator().manual_seed(seed)
    slides = []
    for number in range(count):
        rows = torch.randn(6 + number % 4, 5, generator=generator)
        if number % 2:
            rows[:2, 0] += 4
        slides.append(LabelledSlide(f"s{number}", rows, number % 2))
    return slides


def no_one(epoch: int, metrics: object) -> None:
    pass


def test_an_epoch_shows_every_slide_and_draws_the_smaller_class_again() -> None:
    slides = [LabelledSlide(f"n{i}", torch.zeros(1, 1), 0) for i in range(7)] + [
        LabelledSlide(f"p{i}", torch.zeros(1, 1), 1) for i in range(3)
    ]
    steps = list(steps_of(slides, seed=0, epoch=1))
    assert all(positive.label == 1 and negative.label == 0 for positive, negative in steps)
    assert Counter(negative.slide_id for _, negative in steps) == {f"n{i}": 1 for i in range(7)}
    drawn = Counter(positive.slide_id for positive, _ in steps)
    assert sorted(drawn.values()) == [2, 2, 3]
    assert [n.slide_id for _, n in steps] != [
        n.slide_id for _, n in steps_of(slides, seed=0, epoch=2)
    ]


def test_step_losses_by_hand() -> None:
    zero = torch.tensor(0.0)
    positive = HeadOutput(zero, torch.tensor([0.0, -1.0]), torch.tensor([0.5, 0.5]))
    negative = HeadOutput(torch.tensor(2.0), torch.tensor([-3.0, 1.0, 0.0]), torch.ones(3) / 3)
    slide, tile, rank = step_losses(
        make_head(5, SECTION), positive, negative, params.Ranking(on="logit", margin=1.0, top_k=2)
    )
    log2, softplus2, softplus1 = 0.693147, 2.126928, 1.313262  # ln(1 + e^x)
    assert slide.item() == pytest.approx((log2 + softplus2) / 2, abs=1e-5)
    assert tile.item() == pytest.approx((log2 + softplus1) / 2, abs=1e-5)
    assert rank.item() == pytest.approx(1 + 0.5 + 0.5)  # means of the top 2: -0.5 and 0.5


def test_the_tile_loss_of_a_step_is_the_heads_own() -> None:
    positive = HeadOutput(torch.tensor(0.0), torch.tensor([0.0, -1.0]), torch.tensor([0.5, 0.5]))
    negative = HeadOutput(torch.tensor(2.0), torch.tensor([-3.0, 1.0, 0.0]), torch.ones(3) / 3)
    tile = step_losses(make_head(5, params.Head(kind="inherit")), positive, negative, RANKING)[1]
    log2, softplus1, softplus_minus3 = 0.693147, 1.313262, 0.048587  # ln(1 + e^x)
    assert tile.item() == pytest.approx(
        ((log2 + softplus1) / 2 + (softplus_minus3 + softplus1 + log2) / 3) / 2, abs=1e-5
    )


def test_each_loss_has_its_own_weight() -> None:
    section = SECTION.model_copy(update={"epochs": 1, "slide_weight": 0.7, "tile_weight": 0.2})
    _, (row,) = fit_head(
        cohort(8, 1), cohort(6, 2), section, RANKING.model_copy(update={"weight": 0.05}), no_one
    )
    assert len({row[f"{part}_loss"] for part in ("slide", "tile", "ranking")}) == 3
    assert row["loss"] == pytest.approx(
        0.7 * row["slide_loss"] + 0.2 * row["tile_loss"] + 0.05 * row["ranking_loss"]
    )


def test_the_optimiser_takes_the_sections_weight_decay() -> None:
    decays: list[float] = []
    hook = register_optimizer_step_post_hook(
        lambda optimiser, *_: decays.append(optimiser.param_groups[0]["weight_decay"])
    )
    try:
        fit_head(
            cohort(8, 1),
            cohort(6, 2),
            SECTION.model_copy(update={"epochs": 2, "weight_decay": 0.25}),
            RANKING,
            no_one,
        )
    finally:
        hook.remove()
    assert decays == [0.25] * 2 * 4  # two epochs of four pairs


def test_ranking_on_scores_ranks_sigmoids() -> None:
    positive = HeadOutput(torch.tensor(0.0), torch.tensor([0.0]), torch.ones(1))
    negative = HeadOutput(torch.tensor(0.0), torch.tensor([1.0]), torch.ones(1))
    rank = step_losses(
        make_head(5, SECTION),
        positive,
        negative,
        params.Ranking(on="score", margin=0.25, top_k=3),
    )[2]
    assert rank.item() == pytest.approx(0.25 - 0.5 + 0.731059, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_learns_what_can_be_learnt_and_keeps_the_best_validation_epoch(kind: str) -> None:
    validation = cohort(12, seed=2)
    heard: list[int] = []
    rate = (
        0.05 if kind in ("mean", "max", "inherit") else 5e-3
    )  # a lone linear layer needs larger weights
    epochs = 5 if kind == "transmil" else 12  # its steps are slow, and it needs few
    changes = {
        "kind": kind,
        "epochs": epochs,
        "top_k": 2,
        "instance_tiles": 2,
        "learning_rate": rate,
    }
    section = params.Head.model_validate({**SECTION.model_dump(), **changes})
    head, history = fit_head(
        cohort(24, seed=1), validation, section, RANKING, lambda epoch, metrics: heard.append(epoch)
    )
    best = max(history, key=lambda row: (row["validation_auc"], -row["validation_loss"]))
    assert best["validation_auc"] > 0.9
    assert validate(head, validation) == (best["validation_auc"], best["validation_loss"])
    assert heard == [row["epoch"] for row in history] == list(range(1, len(history) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_head_bit_by_bit(kind: str) -> None:
    section = params.Head.model_validate(
        {"kind": kind, "epochs": 3, "dropout": 0.2, "attention_features": 8}
    )
    states = [
        fit_head(cohort(8, 1), cohort(6, 2), section, RANKING, no_one)[0].state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_features_are_standardised_by_all_train_tiles_and_never_held_twice() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            self.numbers = max(
                [
                    self.numbers,
                    *(
                        leaf.numel()
                        for leaf in tree_leaves(output)
                        if isinstance(leaf, torch.Tensor)
                    ),
                ]
            )
            return output

    generator = torch.Generator().manual_seed(4)
    slides = [
        LabelledSlide(f"s{i}", torch.randn(10 + i, 150, generator=generator) * 3 + 1, i % 2)
        for i in range(6)
    ]
    with Largest() as largest:
        head, _ = fit_head(slides, slides[:2], params.Head(kind="mean", epochs=1), RANKING, no_one)
    everything = torch.cat([slide.features for slide in slides])
    assert_close(
        head.mean, everything.mean(dim=0)
    )  # some columns at a time are another sum than all at once
    assert_close(head.scale, everything.std(dim=0, unbiased=False))
    assert largest.numbers <= len(everything) * 64 < everything.numel() / 2


def test_a_mined_head_learns_from_the_mined_tiles_alone() -> None:
    section = params.Head(kind="mined", top_k=2)
    slides = [
        replace(slide, mined=torch.tensor([0, 2] if slide.label else [1, 4, 5]))
        for slide in cohort(8, 1)
    ]
    head, history = fit_head(slides, cohort(6, 2), section, RANKING, no_one)
    noisy = [replace(slide, features=slide.features.clone()) for slide in slides]
    for slide in noisy:
        others = [tile for tile in range(len(slide.features)) if tile not in slide.mined]  # type: ignore[operator]
        slide.features[others] = slide.features[others].flip(
            0
        )  # the standardisation is of all tiles
    again, same = fit_head(noisy, cohort(6, 2), section, RANKING, no_one)
    assert [row["tile_loss"] for row in history] == pytest.approx(
        [row["tile_loss"] for row in same], rel=2e-4
    )
    assert torch.allclose(head.classifier.weight, again.classifier.weight, atol=1e-3)  # type: ignore[union-attr,arg-type]
    everything = fit_head(cohort(8, 1), cohort(6, 2), section, RANKING, no_one)[1]
    assert all(
        row["tile_loss"] > mined["tile_loss"] + 0.01
        for row, mined in zip(everything, history, strict=True)
    )


@pytest.mark.parametrize("label", [0, 1])
def test_a_mined_head_without_mined_tiles_of_a_label_is_refused(label: int) -> None:
    slides = [
        replace(slide, mined=torch.arange(0 if slide.label == label else 2))
        for slide in cohort(8, 1)
    ]
    with pytest.raises(
        HeadError,
        match=(
            f"head.kind=mined, but no tile of a train slide with label {label} was mined; mine more"
            " tiles, or take another"
        ),
    ):
        fit_head(slides, cohort(6, 2), params.Head(kind="mined"), RANKING, no_one)


def test_training_stops_after_patience_epochs_without_a_better_one() -> None:
    section = params.Head(
        epochs=30, patience=2, learning_rate=1e-12, schedule="constant", attention_features=8
    )
    _, history = fit_head(cohort(8, 1), cohort(6, 2), section, RANKING, no_one)
    best = max(
        range(len(history)),
        key=lambda i: (history[i]["validation_auc"], -history[i]["validation_loss"], -i),
    )
    assert len(history) == best + 1 + 2 < 30


def test_the_cosine_schedule_is_stepped_once_an_epoch() -> None:
    _, history = fit_head(
        cohort(4, 1),
        cohort(4, 2),
        params.Head(epochs=4, patience=4, learning_rate=0.1, attention_features=4),
        RANKING,
        no_one,
    )
    assert [row["learning_rate"] for row in history] == pytest.approx(
        [0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6
    )


@pytest.mark.parametrize(
    ("split", "label"), [("train", 0), ("train", 1), ("validation", 0), ("validation", 1)]
)
def test_a_split_of_one_class_is_refused(split: str, label: int) -> None:
    slides = {"train": cohort(6, 1), "validation": cohort(6, 2)}
    slides[split] = [slide for slide in slides[split] if slide.label != label]
    with pytest.raises(HeadError, match=f"no {split} slide with label {label} has tiles"):
        fit_head(slides["train"], slides["validation"], SECTION, RANKING, no_one)


def test_a_loss_that_is_no_longer_finite_is_refused() -> None:
    with pytest.raises(
        HeadError, match=r"not finite in epoch \d+; lower head.learning_rate=1e\+30"
    ):
        fit_head(
            cohort(6, 1),
            cohort(6, 2),
            params.Head(learning_rate=1e30, attention_features=4),
            RANKING,
            no_one,
        )
