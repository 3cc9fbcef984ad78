"""Random views of tiles, fit for histology: no direction, no colour beyond the stains' own
variation.
"""

import functools

import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor

from hnm import params

_STAINS = torch.tensor(rgb_from_hed, dtype=torch.float32)
"""Optical density per RGB channel of haematoxylin, eosin and residual, a stain each row (Ruifrok
and Johnston 2001).
"""
_UNMIX = torch.tensor(hed_from_rgb, dtype=torch.float32)


def random_views(tiles: Tensor, section: params.Views, seed: int) -> Tensor:
    """A random view of each tile: flips, right-angle turns, resized crop, stain and brightness
    jitter, blur.

    Parameters are drawn for each tile.

    Args:
        tiles: `(tiles, 3, height, width)` in [0, 1], height = width.
        section: how strong the views are.
        seed: of all draws of this call; see `hnm.seeds.seed_of`.

    Returns:
        Views of the same shape, in [0, 1].
    """
    with torch.random.fork_rng(devices=[tiles.device] if tiles.is_cuda else []):
        torch.manual_seed(seed)
        views: Tensor = _geometry(tiles.shape[-1], section)(tiles)
        views = jitter_stains(views, *_stain_draws(len(tiles), section, tiles.device))
        return views.clamp(0, 1)


@functools.cache
def _geometry(side: int, section: params.Views) -> torch.nn.Module:
    import kornia.augmentation as k

    square = (1.0, 1.0)
    steps: list[torch.nn.Module] = [
        k.RandomHorizontalFlip(p=0.5),
        k.RandomVerticalFlip(p=0.5),
        # two flips and a transposition make all eight orientations of a square without resampling
        k.RandomRotation90(times=(1, 1), p=0.5, resample="nearest"),
        k.RandomResizedCrop(
            (side, side), scale=(section.min_crop, 1.0), ratio=square, cropping_mode="resample"
        ),
        k.RandomGaussianBlur((5, 5), (0.1, 1.5), p=section.blur),
    ]
    return torch.nn.Sequential(*steps)


def _stain_draws(
    tiles: int, section: params.Views, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors and shifts `(tiles, 3)` of the stains, brightness `(tiles,)`."""

    def around(centre: float, spread: float, *shape: int) -> Tensor:
        return centre + spread * (2 * torch.rand(shape, device=device) - 1)

    return (
        around(1, section.stain, tiles, 3),
        around(0, section.stain / 10, tiles, 3),
        around(1, section.brightness, tiles),
    )


def jitter_stains(tiles: Tensor, factors: Tensor, shifts: Tensor, brightness: Tensor) -> Tensor:
    """Tiles whose stain densities are scaled and shifted: `density' = factor * density + shift`,
    then brightness.

    Densities are of base e, by Beer-Lambert, unmixed by Ruifrok and Johnston's stain vectors;
    glass, whose density is 0, takes the shift as a tint.

    Args:
        tiles: `(tiles, 3, height, width)` in [0, 1].
        factors: `(tiles, 3)` for haematoxylin, eosin, residual.
        shifts: `(tiles, 3)`.
        brightness: `(tiles,)` factor on the result.
    """
    stains, unmix = _STAINS.to(tiles), _UNMIX.to(tiles)
    # one 3 x 3 matrix a tile: unmix, scale, mix again
    matrix = torch.einsum("is,ns,so->noi", unmix, factors, stains)
    tint = shifts @ stains
    density = -torch.log(tiles.clamp_min(1e-3))
    jittered = torch.einsum("noi,nihw->nohw", matrix, density) + tint[:, :, None, None]
    return (torch.exp(-jittered) * brightness[:, None, None, None]).clamp(0, 1)
