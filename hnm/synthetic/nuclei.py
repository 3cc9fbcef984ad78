"""Nuclei: the looks of each kind, the places of its cells, and their haematoxylin on a canvas."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hnm.synthetic.fields import COSINES, DIRECTIONS, ONE, SINES, Dice, Ints, noise

Canvas = npt.NDArray[np.int16]
"""Haematoxylin of nuclei, in thousandths, on a slide with `MARGIN` pixels around it."""
MARGIN = 32
"""Pixels of the canvas around the slide, so that a nucleus may lie across its border."""
VARIANTS = 3 * DIRECTIONS
"""Nuclei drawn of each kind; every cell shows one of them."""
DARKEST = 1400
"""Largest density of haematoxylin, in thousandths."""
EDGE_PX = 2.2
TEXTURE_PX = 512


@dataclass(frozen=True)
class Kind:
    """Cells of one kind. Lengths are in pixels of 0.5 µm, shares in percent.

    Ranges of whole numbers leave out their end.
    """

    spacing: int
    """The spacing of the hexagonal lattice that the cells are scattered around."""
    jitter: int
    """The largest displacement from the lattice, in shares of the spacing."""
    radius: tuple[float, float]
    """The range of the geometric mean of a nucleus's half axes."""
    elongation: tuple[int, int]
    """The range of the long over the short axis."""
    roughness: int
    """The roughness of the outline, in shares of the radius."""
    density: tuple[int, int]
    """The range of haematoxylin, in thousandths."""
    clumps: int
    """The contrast of the chromatin."""
    pallor: int = 0
    """The lack of haematoxylin inside of the membrane (vesicular nuclei)."""
    nucleoli: tuple[int, int] = (0, 1)
    """The range of the number of nucleoli."""


LYMPHOCYTE = Kind(
    spacing=16,
    jitter=30,
    radius=(5.5, 7.5),
    elongation=(100, 129),
    roughness=14,
    density=(720, 1151),
    clumps=45,
)
FIBROBLAST = Kind(
    spacing=30,
    jitter=60,
    radius=(4.5, 7.0),
    elongation=(250, 521),
    roughness=14,
    density=(500, 901),
    clumps=25,
)


def large_cells(dice: Dice, pleomorphism: int) -> Kind:
    """Returns the large cells of one slide.

    They are tumour where `pleomorphism`, in percent, is high, and benign look-alikes where it is
    low. Size, crowding, darkness and chromatin differ from slide to slide in the same way for both.
    The nuclei of tumour differ more from each other and from a round shape, and crowd irregularly.
    """
    radius = dice.one(88, 112) / 10
    density = dice.one(560, 760)
    sizes = 6 + pleomorphism * 34 // 100
    shades = 8 + pleomorphism * 32 // 100
    return Kind(
        spacing=dice.one(22, 27),
        jitter=22 + pleomorphism * 36 // 100,
        radius=(radius * (100 - sizes) / 100, radius * (100 + sizes) / 100),
        elongation=(100, 117 + pleomorphism * 80 // 100),
        roughness=9 + pleomorphism * 22 // 100,
        density=(density * (100 - shades) // 100, density * (100 + shades) // 100 + 1),
        clumps=dice.one(25, 50),
        pallor=dice.one(5, 40),
        nucleoli=(0, 3),
    )


def scatter(dice: Dice, kind: Kind, where: Ints, grain: int) -> tuple[Ints, Ints]:
    """Returns the pixels x, y of the cells of one kind.

    `where` is the share of places, in 256ths, that hold a cell, one for every `grain` pixels.
    """
    height = where.shape[0] * grain
    width = where.shape[1] * grain
    rise = kind.spacing * 7 // 8
    reach = kind.spacing * kind.jitter // 100
    y, x = (part.ravel() for part in np.mgrid[0:height:rise, 0 : width : kind.spacing])
    x = x + y // rise % 2 * (kind.spacing // 2) + dice.many(-reach, reach + 1, len(x))
    y = y + dice.many(-reach, reach + 1, len(y))
    chance = dice.many(0, ONE, len(x))
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    x, y, chance = (part[inside] for part in (x, y, chance))
    taken = where[y // grain, x // grain] > chance
    return x[taken].astype(np.int32), y[taken].astype(np.int32)


def directions_along(slope_x: Ints, slope_y: Ints) -> Ints:
    """Returns the direction (an index) of the contour line, across the steepest slope."""
    steepest = np.argmax(slope_x[:, None] * COSINES + slope_y[:, None] * SINES, axis=1)
    return np.asarray((steepest + DIRECTIONS // 4) % DIRECTIONS, np.int32)


def stamp(
    dice: Dice,
    canvas: Canvas,
    kind: Kind,
    x: Ints,
    y: Ints,
    directions: Ints | None = None,
) -> None:
    """Draws a nucleus of `kind` at each pixel x, y into the canvas.

    The canvas is `MARGIN` larger all round. Where two nuclei overlap the darker shows.
    """
    textures = noise(dice, 7, TEXTURE_PX, TEXTURE_PX), noise(dice, 3, TEXTURE_PX, TEXTURE_PX)
    variants = [_nucleus(dice, kind, number % DIRECTIONS, textures) for number in range(VARIANTS)]
    turns = dice.many(0, DIRECTIONS, len(x)) if directions is None else directions
    numbers = turns + DIRECTIONS * dice.many(0, VARIANTS // DIRECTIONS, len(x))
    for left, top, number in zip(x.tolist(), y.tolist(), numbers.tolist(), strict=True):
        nucleus = variants[number]
        side = len(nucleus)
        corner = MARGIN - side // 2
        below = canvas[top + corner : top + corner + side, left + corner : left + corner + side]
        np.maximum(below, nucleus, out=below)


def _nucleus(
    dice: Dice, kind: Kind, direction: int, textures: tuple[Ints, Ints]
) -> npt.NDArray[np.int16]:
    """Returns the haematoxylin of one nucleus, in the middle of a square of odd side.

    Its long axis lies in `direction`; outline and chromatin vary as some part of `textures`.
    """
    least, most = kind.radius
    radius = least + (most - least) * dice.one(0, 257) / 256
    stretch = float(np.sqrt(dice.one(*kind.elongation) / 100))
    long = radius * stretch
    short = radius / stretch
    reach = min(int(long * 1.35) + 2, MARGIN - 1)
    side = 2 * reach + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    along = (x * COSINES[direction] + y * SINES[direction]) / 4096
    across = (y * COSINES[direction] - x * SINES[direction]) / 4096
    left = dice.one(0, TEXTURE_PX - side)
    top = dice.one(0, TEXTURE_PX - side)
    uneven, clumped = (texture[top : top + side, left : left + side] for texture in textures)
    from_centre = (
        np.sqrt(np.square(along / long) + np.square(across / short))
        + uneven * kind.roughness / 30000
    )
    inside = np.clip((1 - from_centre) * short / EDGE_PX + 0.5, 0, 1)
    chromatin = 1 + clumped * kind.clumps / 30000
    membrane = 1 - kind.pallor * np.clip((0.9 - from_centre) * 3, 0, 1) / 100
    density = dice.one(*kind.density) * chromatin * membrane
    for _ in range(dice.one(*kind.nucleoli)):
        at_x = dice.one(-40, 41) * short / 100
        at_y = dice.one(-40, 41) * short / 100
        distance = np.sqrt(np.square(x - at_x) + np.square(y - at_y))
        density = density + 400 * np.clip(2.2 - distance, 0, 1)
    return np.asarray(np.clip(np.rint(inside * density), 0, DARKEST), np.int16)
