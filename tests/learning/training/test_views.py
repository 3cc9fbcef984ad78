"""Views: what they may change and what they must not."""

import pytest
import torch

from hnm import params
from hnm.learning.training.views import jitter_stains, random_views


def tiles(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    one, same, other = (random_views(tiles(), params.Views(), seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.shape == (3, 3, 16, 16) and one.min() >= 0 and one.max() <= 1


def test_parameters_are_drawn_for_each_tile() -> None:
    views = random_views(tiles(1).expand(6, -1, -1, -1), params.Views(), 1)
    assert len({view.sum().item() for view in views}) == 6


def test_without_crop_stain_and_blur_a_view_is_one_of_the_eight_orientations() -> None:
    plain = params.Views(min_crop=1.0, stain=0.0, brightness=0.0, blur=0.0)
    tile = tiles(1)
    orientations = [
        torch.rot90(flipped, turns, (2, 3))
        for flipped in (tile, tile.flip(3))
        for turns in range(4)
    ]
    seen = set()
    for view in random_views(tile.expand(64, -1, -1, -1), plain, 7):
        distances = [(view - orientation).abs().max().item() for orientation in orientations]
        assert min(distances) < 2e-3
        seen.add(distances.index(min(distances)))
    assert seen == set(range(8))


def test_stain_jitter_of_factor_1_and_shift_0_is_the_identity() -> None:
    same = jitter_stains(tiles(), torch.ones(3, 3), torch.zeros(3, 3), torch.ones(3))
    assert torch.allclose(same, tiles(), atol=1e-4)


def test_stain_jitter_by_hand() -> None:
    haematoxylin = torch.tensor(
        [0.65, 0.70, 0.29]
    )  # its optical density per channel, Ruifrok and Johnston 2001
    tile = torch.exp(-0.8 * haematoxylin).view(1, 3, 1, 1)
    half = jitter_stains(tile, torch.tensor([[0.5, 1.0, 1.0]]), torch.zeros(1, 3), torch.ones(1))
    assert half.flatten().tolist() == pytest.approx(
        torch.exp(-0.4 * haematoxylin).tolist(), abs=1e-4
    )
    tinted = jitter_stains(
        tile, torch.ones(1, 3), torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([0.9])
    )
    assert tinted.flatten().tolist() == pytest.approx(
        (0.9 * torch.exp(-0.9 * haematoxylin)).tolist(), abs=1e-4
    )
