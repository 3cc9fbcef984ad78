"""How often the artefact screen refuses tiles as they are, and the same tiles with artefacts drawn
over them.

    python benchmarks/screen.py --packs data/tiles/packs
    python benchmarks/screen.py --images FOLDER --tile-px 96

Limits for a cohort are read off its own tiles: the quantiles at the end are those of tiles as they
are.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from hnm.mining.screen import blur, fold_share, pen_share
from hnm.slides.cutting.pack import Pack

Tile = np.ndarray
MEASURES = {"pen": pen_share, "blur": blur, "fold": fold_share}


def under_ink(
    colour: tuple[int, int, int], share: float
) -> Callable[[Tile, np.random.Generator], Tile]:
    """A stripe of ink lets through its colour of what the tile lets through."""

    def draw(tile: Tile, draw: np.random.Generator) -> Tile:
        width = round(share * len(tile))
        left = draw.integers(0, len(tile) - width + 1)
        inked = tile.copy()
        inked[:, left : left + width] = inked[:, left : left + width] * (np.array(colour) / 255)
        return inked

    return draw


def out_of_focus(sigma_px: float) -> Callable[[Tile, np.random.Generator], Tile]:
    return lambda tile, _: ndimage.gaussian_filter(tile, (sigma_px, sigma_px, 0))


def folded(share: float) -> Callable[[Tile, np.random.Generator], Tile]:
    """In a stripe the tile lies upon another part of itself: transmittances multiply."""

    def draw(tile: Tile, draw: np.random.Generator) -> Tile:
        width = round(share * len(tile))
        left = draw.integers(0, len(tile) - width + 1)
        other = np.roll(tile[:, ::-1], len(tile) // 3, axis=0)
        doubled = tile.copy()
        doubled[:, left : left + width] = (tile / 255 * (other / 255) * 255)[:, left : left + width]
        return doubled

    return draw


ARTEFACTS: dict[str, Callable[[Tile, np.random.Generator], Tile]] = {
    "as they are": lambda tile, _: tile,
    "green pen over 30 %": under_ink((40, 160, 120), 0.3),
    "blue pen over 30 %": under_ink((40, 90, 190), 0.3),
    "red pen over 30 %": under_ink((210, 30, 40), 0.3),
    "out of focus, 2 px": out_of_focus(2),
    "out of focus, 4 px": out_of_focus(4),
    "folded over 30 %": folded(0.3),
    "folded over 15 %": folded(0.15),
}


def tiles_of_packs(folder: Path, count: int, draw: np.random.Generator) -> list[Tile]:
    packs = [Pack(path) for path in sorted(folder.glob("*.h5"))]
    return [
        pack.tiles([draw.integers(len(pack))])[0]
        for pack in (packs[i] for i in draw.integers(0, len(packs), count))
    ]


def tiles_of_images(
    folder: Path, tile_px: int, count: int, draw: np.random.Generator
) -> list[Tile]:
    tiles = []
    for path in sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    ):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        height, width = (side // tile_px * tile_px for side in pixels.shape[:2])
        tiles += [
            pixels[y : y + tile_px, x : x + tile_px]
            for y in range(0, height, tile_px)
            for x in range(0, width, tile_px)
        ]
    return [tiles[i] for i in sorted(draw.permutation(len(tiles))[:count])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--packs", type=Path)
    where.add_argument("--images", type=Path)
    parser.add_argument("--tile-px", type=int, default=96, help="of images")
    parser.add_argument("--tiles", type=int, default=400)
    parser.add_argument("--max-pen-share", type=float, default=0.05)
    parser.add_argument("--max-blur", type=float, default=0.5)
    parser.add_argument("--max-fold-share", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = np.random.default_rng(given.seed)
    tiles = (
        tiles_of_packs(given.packs, given.tiles, draw)
        if given.packs
        else tiles_of_images(given.images, given.tile_px, given.tiles, draw)
    )
    limits = {"pen": given.max_pen_share, "blur": given.max_blur, "fold": given.max_fold_share}
    print(
        f"| {len(tiles)} tiles | "
        + " | ".join(f"{name} > {limit:g}" for name, limit in limits.items())
        + " | any |"
    )
    print("|---|" + "---|" * (len(limits) + 1))
    for artefact, drawn in ARTEFACTS.items():
        pictures = [drawn(tile, draw) for tile in tiles]
        values = {
            name: np.array([measure(picture) for picture in pictures])
            for name, measure in MEASURES.items()
        }
        refused = {name: values[name] > limit for name, limit in limits.items()}
        shares = [
            *(part.mean() for part in refused.values()),
            np.any(list(refused.values()), axis=0).mean(),
        ]
        print(
            f"| {artefact} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |",
            flush=True,
        )
        if artefact == "as they are":
            quantiles = {name: np.quantile(own, [0.5, 0.95, 0.99]) for name, own in values.items()}
    print(
        "\nmedian, 95 % and 99 % of tiles as they are: "
        + "; ".join(
            f"{name} {', '.join(f'{q:.3f}' for q in own)}" for name, own in quantiles.items()
        )
    )


if __name__ == "__main__":
    main()
