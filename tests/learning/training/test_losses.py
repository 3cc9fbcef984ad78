"""The losses against their formulas: by hand, and in plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.learning.training.losses import (
    nt_xent_loss,
    ranking_loss,
    spread,
    supervised_contrastive_loss,
)

values = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9)


def ranking_in_loops(positive: list[float], negative: list[float], margin: float, k: int) -> float:
    def top_mean(tiles: list[float]) -> float:
        best = sorted(tiles, reverse=True)[:k]
        return sum(best) / len(best)

    return max(0.0, margin - top_mean(positive) + top_mean(negative))


def contrast_in_loops(
    rows: list[list[float]], roles: list[int], anchors: list[bool], temperature: float
) -> float:
    """Khosla et al. 2020, equation 2, term by term."""
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / temperature

    total, counted = 0.0, 0
    for i in range(len(rows)):
        positives = [p for p in range(len(rows)) if p != i and roles[p] == roles[i]]
        if not anchors[i] or not positives:
            continue
        everyone = sum(math.exp(similarity(i, a)) for a in range(len(rows)) if a != i)
        total += -sum(math.log(math.exp(similarity(i, p)) / everyone) for p in positives) / len(
            positives
        )
        counted += 1
    return total / counted if counted else 0.0


def test_ranking_loss_by_hand() -> None:
    positive, negative = torch.tensor([0.9, 0.1, 0.7, 0.2]), torch.tensor([0.3, 0.5, 0.1])
    # top 2: (0.9 + 0.7) / 2 = 0.8 and (0.5 + 0.3) / 2 = 0.4
    assert ranking_loss(positive, negative, margin=0.5, top_k=2).item() == pytest.approx(0.1)
    assert ranking_loss(positive, negative, margin=0.3, top_k=2).item() == 0.0
    assert ranking_loss(negative, positive, margin=0.5, top_k=2).item() == pytest.approx(0.9)


def test_ranking_loss_of_slides_with_fewer_than_k_tiles_uses_what_there_is() -> None:
    # means over 1 and 3 tiles: 0.6 and 0.3
    loss = ranking_loss(torch.tensor([0.6]), torch.tensor([0.3, 0.5, 0.1]), margin=1.0, top_k=5)
    assert loss.item() == pytest.approx(0.7)


def test_ranking_loss_pulls_the_top_k_alone() -> None:
    positive = torch.tensor([0.9, 0.1, 0.7], requires_grad=True)
    negative = torch.tensor([0.3, 0.5, 0.1, 0.2], requires_grad=True)
    ranking_loss(positive, negative, margin=1.0, top_k=2).backward()
    assert positive.grad is not None and positive.grad.tolist() == [-0.5, 0.0, -0.5]
    assert negative.grad is not None and negative.grad.tolist() == [0.5, 0.5, 0.0, 0.0]


@given(values, values, st.floats(0, 3), st.integers(1, 12))
def test_ranking_loss_is_its_formula(
    positive: list[float], negative: list[float], margin: float, k: int
) -> None:
    loss = ranking_loss(
        torch.tensor(positive, dtype=torch.float64),
        torch.tensor(negative, dtype=torch.float64),
        margin=margin,
        top_k=k,
    )
    assert loss.item() == pytest.approx(ranking_in_loops(positive, negative, margin, k), abs=1e-9)


@given(st.data(), st.integers(2, 8), st.floats(0.05, 2))
def test_contrastive_loss_is_its_formula(
    data: st.DataObject, count: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    rows = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    roles = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    anchors = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    loss = supervised_contrastive_loss(
        rows, torch.tensor(roles), torch.tensor(anchors), temperature=temperature
    )
    assert loss.item() == pytest.approx(
        contrast_in_loops(rows.tolist(), roles, anchors, temperature), rel=1e-9, abs=1e-9
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1]))
def test_contrastive_gradients_are_those_of_the_formula(seed: int, anchor: int) -> None:
    """Rows that are contrast alone are pushed too: central differences of the loops."""
    rows = torch.randn(
        6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True
    )
    roles = [0, 1, 0, 1, 0, 2]
    anchors = [role == anchor for role in roles]
    supervised_contrastive_loss(
        rows, torch.tensor(roles), torch.tensor(anchors), temperature=0.3
    ).backward()
    assert rows.grad is not None
    for i in range(6):
        for j in range(3):
            sides = []
            for step in (1e-5, -1e-5):
                moved = rows.detach().clone()
                moved[i, j] += step
                sides.append(contrast_in_loops(moved.tolist(), roles, anchors, 0.3))
            assert rows.grad[i, j].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-6)


def test_contrastive_loss_by_hand() -> None:
    # two anchors on one axis, one stranger at a right angle: similarities 1 and 0, temperature 0.5
    rows = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    loss = supervised_contrastive_loss(
        rows, torch.tensor([0, 0, 1]), torch.tensor([True, True, True]), temperature=0.5
    )
    assert loss.item() == pytest.approx(
        -math.log(math.exp(2) / (math.exp(2) + 1))
    )  # the stranger has no positive: it is no anchor


def test_contrastive_loss_without_anchors_is_zero_and_can_be_differentiated() -> None:
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = supervised_contrastive_loss(
        rows, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool), temperature=0.1
    )
    loss.backward()
    assert loss.item() == 0.0 and rows.grad is not None and rows.grad.abs().sum() == 0


def test_contrastive_loss_stays_finite_at_a_cold_temperature_and_in_bfloat16() -> None:
    rows = torch.eye(4).repeat(2, 1)
    roles = torch.tensor([0, 0, 1, 1] * 2)
    cold = supervised_contrastive_loss(
        rows, roles, torch.ones(8, dtype=torch.bool), temperature=1e-3
    )
    assert torch.isfinite(cold)
    plain = supervised_contrastive_loss(
        rows, roles, torch.ones(8, dtype=torch.bool), temperature=0.07
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = supervised_contrastive_loss(
            rows.bfloat16(), roles, torch.ones(8, dtype=torch.bool), temperature=0.07
        )
    assert half.dtype == torch.float32 and half.item() == pytest.approx(plain.item(), rel=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_contrastive_loss_of_bfloat16_rows_is_the_formula_of_their_values(
    seed: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 5, generator=generator).bfloat16().requires_grad_()
    roles, anchors = torch.randint(2, (2, count), generator=generator)
    loss = supervised_contrastive_loss(rows, roles, anchors.bool(), temperature=0.07)
    assert loss.item() == pytest.approx(
        contrast_in_loops(rows.tolist(), roles.tolist(), anchors.tolist(), 0.07), rel=1e-4, abs=1e-4
    )
    loss.backward()
    assert rows.grad is not None and torch.isfinite(rows.grad).all()


def test_contrastive_loss_of_views_at_one_point_is_ln_of_the_other_rows() -> None:
    rows = torch.tensor([[0.3, -0.4]]).repeat(6, 1)
    loss = supervised_contrastive_loss(
        rows, torch.tensor([0, 1, 0, 1, 1, 1]), torch.ones(6, dtype=torch.bool), temperature=0.07
    )
    assert loss.item() == pytest.approx(math.log(5))


def test_spread_by_hand() -> None:
    # cosines of the three pairs: 0, -1, 0
    assert spread(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])).item() == pytest.approx(
        1 + 1 / 3
    )
    assert spread(torch.tensor([[2.0, 1.0], [4.0, 2.0]])).item() == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.05, 2))
def test_nt_xent_loss_is_its_formula(seed: int, count: int, temperature: float) -> None:
    """Chen et al. 2020, equation 1 and algorithm 1, view by view."""
    views = torch.randn(
        2 * count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    tiles = torch.arange(count).repeat(2)
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in views.tolist()]

    def exponential(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / temperature)

    total = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        total += -math.log(
            exponential(i, j) / sum(exponential(i, k) for k in range(2 * count) if k != i)
        )
    assert nt_xent_loss(views, tiles, temperature=temperature).item() == pytest.approx(
        total / (2 * count), rel=1e-9, abs=1e-9
    )
