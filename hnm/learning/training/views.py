"""Random views of tiles for histology: tissue has no direction, and its colour varies as stains
do.
"""

import functools

import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor

from hnm import params

_STAINS = torch.tensor(rgb_from_hed, dtype=torch.float32)
"""`(3, 3)`: optical densities in red, green and blue of haematoxylin, eosin and residual, one stain
a row (Ruifrok and Johnston 2001).
"""
_UNMIX = torch.tensor(hed_from_rgb, dtype=torch.float32)
"""`(3, 3)`: the inverse of `_STAINS`."""


def random_views(tiles: Tensor, section: params.Views, seed: int) -> Tensor:
    """Returns a random view of each tile: `(tiles, 3, height, width)` in [0, 1].

    A view is flipped, turned by a right angle, cropped and resized, blurred, and its stains and
    brightness are changed. Each tile has its draws.

    Args:
        tiles: `(tiles, 3, height, width)` in [0, 1], with height = width.
        section: how strong the changes are.
        seed: the seed of all draws of this call, from `hnm.seeds.seed_of`.
    """
    with torch.random.fork_rng(devices=[tiles.device] if tiles.is_cuda else []):
        torch.manual_seed(seed)
        views = _geometry(tiles.shape[-1], section)(tiles)
        views = jitter_stains(views, *_stain_draws(len(tiles), section, tiles.device))
        return views.clamp(0, 1)


@functools.cache
def _geometry(side: int, section: params.Views) -> torch.nn.Module:
    """Returns the flips, turns, crops and blurs of tiles of `side` px."""
    import kornia.augmentation as k

    return torch.nn.Sequential(
        k.RandomHorizontalFlip(p=0.5),
        k.RandomVerticalFlip(p=0.5),
        # two flips and a transposition make all eight orientations of a square without resampling
        k.RandomRotation90(times=(1, 1), p=0.5, resample="nearest"),
        k.RandomResizedCrop(
            (side, side), scale=(section.min_crop, 1.0), ratio=(1.0, 1.0), cropping_mode="resample"
        ),
        k.RandomGaussianBlur((5, 5), (0.1, 1.5), p=section.blur),
    )


def _stain_draws(
    tiles: int, section: params.Views, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns random factors and shifts `(tiles, 3)` of the stains, and of the brightness
    `(tiles,)`.
    """

    def around(centre: float, spread: float, *shape: int) -> Tensor:
        return centre + spread * (2 * torch.rand(shape, device=device) - 1)

    return (
        around(1, section.stain, tiles, 3),
        around(0, section.stain / 10, tiles, 3),
        around(1, section.brightness, tiles),
    )


def jitter_stains(tiles: Tensor, factors: Tensor, shifts: Tensor, brightness: Tensor) -> Tensor:
    """Returns tiles whose stain densities are scaled and shifted, `factor * density + shift`, and
    whose pixels are then multiplied by the brightness.

    Densities are natural logarithms (Beer-Lambert), unmixed by the stain vectors of Ruifrok and
    Johnston. Glass has density 0, so the shift tints it.

    Args:
        tiles: `(tiles, 3, height, width)` in [0, 1].
        factors: `(tiles, 3)`, of haematoxylin, eosin and residual.
        shifts: `(tiles, 3)`, likewise.
        brightness: `(tiles,)`.
    """
    stains = _STAINS.to(tiles)
    # one 3 x 3 matrix for each tile: unmix, scale, mix again
    matrix = torch.einsum("is,ns,so->noi", _UNMIX.to(tiles), factors, stains)
    tint = shifts @ stains
    density = -torch.log(tiles.clamp_min(1e-3))
    jittered = torch.einsum("noi,nihw->nohw", matrix, density) + tint[:, :, None, None]
    return (torch.exp(-jittered) * brightness[:, None, None, None]).clamp(0, 1)
