"""A tiny cohort with scores of three rounds, for the tests of evidence: ten slides of eleven tiles,
and one in quarantine.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from hnm.evidence.evaluation import CohortTruth, RoundResults
from hnm.evidence.numbers.tile_metrics import Detections
from hnm.files import write_json
from hnm.params import Cohort, Embed, Encoder, Finetune, Head, Mining, Ranking, Tiles
from hnm.slides.annotations import Region, write_annotation
from hnm.slides.cutting.pack import PackTile, encode, write_pack
from hnm.tables import LABELS, MINED, QUARANTINE, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES

SIDE = 64
TILE_PX = 32
GRID = [(SIDE * column, SIDE * row) for row in range(3) for column in range(4)][:11]

# slide -> split, patient, label, score of the slide in rounds 0, 1, 2
CAST = {
    "tr1": ("train", "p1", 1, (0.7, 0.8, 0.9)),
    "tr2": ("train", "p2", 1, (0.6, 0.7, 0.8)),
    "tr3": ("train", "p3", 0, (0.5, 0.3, 0.2)),
    "tr4": ("train", "p4", 0, (0.4, 0.2, 0.1)),
    "va1": ("validation", "p5", 1, (0.45, 0.75, 0.9)),
    "va2": ("validation", "p6", 0, (0.55, 0.35, 0.8)),
    "te1": ("test", "p7", 1, (0.62, 0.91, 0.3)),
    "te2": ("test", "p7", 0, (0.64, 0.22, 0.2)),
    "te3": ("test", "p8", 1, (0.31, 0.41, 0.6)),
    "te4": ("test", "p9", 0, (0.12, 0.58, 0.1)),
}


def cohort(**changes: Any) -> CohortTruth:
    """The cohort; `changes` replace fields."""
    slides = pd.DataFrame(
        {
            "slide_id": list(CAST),
            "path": [f"{slide_id}.svs" for slide_id in CAST],
            "patient_id": [patient for _, patient, _, _ in CAST.values()],
            "split": [split for split, _, _, _ in CAST.values()],
            "vendor": "aperio",
            "mpp_x": 0.5,
            "mpp_y": 0.5,
            "width": 256,
            "height": 192,
            "bounds_x": 0,
            "bounds_y": 0,
            "bounds_width": 256,
            "bounds_height": 192,
            "origin": "auto",
            "fingerprint": "f",
            "mask": "",
            "mask_digest": "",
        }
    )
    lost = slides.iloc[[0]].assign(slide_id="te5", patient_id="p10", split="test")
    labels = {
        split: pd.DataFrame(
            [
                (slide_id, label)
                for slide_id, (dealt, _, label, _) in CAST.items()
                if dealt == split
            ],
            columns=["slide_id", "label"],
        )
        for split in ("train", "validation", "test")
    }
    labels["test"] = pd.concat(
        [labels["test"], pd.DataFrame({"slide_id": ["te5"], "label": [1]})], ignore_index=True
    )
    fields: dict[str, Any] = {
        "slides": SLIDES.check(pd.concat([slides, lost], ignore_index=True), "slides"),
        "labels": labels,
        "quarantine": pd.DataFrame(
            {
                "slide_id": ["bad", "te5"],
                "step": ["open", "tissue"],
                "reason": ["not a slide", "no tissue <found>"],
            }
        ),
        "tiles": tiles(),
        "annotations": annotations(),
        "places": 200,
        "unreadable": 10,
    }
    return CohortTruth(**(fields | changes))


def tiles() -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "slide_id": slide_id,
                "tile": range(len(GRID)),
                "x": [x for x, _ in GRID],
                "y": [y for _, y in GRID],
                "side": SIDE,
                "tissue": np.float32(0.8),
            }
        )
        for slide_id in sorted(CAST)
    ]
    return TILES.check(
        pd.concat(parts, ignore_index=True).astype({"tile": "int32", "x": "int64", "y": "int64"}),
        "tiles",
    )


def annotations() -> dict[str, list[Region]]:
    """Lesions over tiles 0 and 1 and a tenth of tile 2, a look-alike over tile 5 of tr3; te3 and
    tr4 have no annotation.
    """
    lesion = Region("Tumour", shapely.box(0, 0, 2.1 * SIDE, SIDE))
    return {
        "tr1": [lesion],
        "tr2": [lesion],
        "te1": [lesion],
        "tr3": [Region("look-alike", shapely.box(SIDE, SIDE, 2 * SIDE, 2 * SIDE))],
    }


SETTINGS = {
    "cohort": Cohort(name="tiny", manifest="slides.csv"),
    "tiles": Tiles(mpp=1.0, tile_px=TILE_PX),
    "encoder": Encoder(),
    "embed": Embed(),
    "head": Head(),
    "ranking": Ranking(),
    "mining": Mining(threshold=0.25),
    "finetune": Finetune(),
}
"""Sections that `evaluate` tells in its cards."""


def rounds(count: int = 3) -> list[RoundResults]:
    """What `count` rounds left behind; the tiles of a lesion score higher with each."""
    return [_round(number) for number in range(count)]


def _round(number: int) -> RoundResults:
    slide_scores = pd.DataFrame(
        {
            "slide_id": list(CAST),
            "score": np.array([scores[number] for *_, scores in CAST.values()], np.float32),
        }
    )
    tile_scores = tiles().drop(columns="tissue")
    noise = np.random.default_rng(number).random(len(tile_scores)) * 0.4
    bonus = np.where(
        tile_scores["slide_id"].isin(["tr1", "tr2", "te1"]) & (tile_scores["tile"] < 2),
        0.2 * (number + 1),
        0,
    )
    tile_scores["score"] = (noise + bonus).astype(np.float32)
    tile_scores["attention"] = np.float32(1 / len(GRID))
    for table in (slide_scores, tile_scores):
        table["logit"] = np.log(table["score"] / (1 - table["score"])).astype(np.float32)
    history = {
        "epoch": [1, 2],
        "loss": [1.5 - 0.1 * number, 1.2],
        "validation_auc": [0.5, 0.75],
        "validation_loss": [0.8, 0.6],
    }
    if not number:
        return RoundResults(
            "0", slide_scores, tile_scores, pd.DataFrame(history), records=_records()
        )
    encoder_history = {
        "epoch": [1, 2, 3],
        "loss": [4.0, 3.5, 3.25 - number],
        "negative_loss": [4.0, 3.5, 3.1],
        "positive_loss": [3.9, 3.4, 3.0],
        "spread": [0.5, 0.25, 0.125],
    }
    return RoundResults(
        str(number),
        slide_scores,
        tile_scores,
        pd.DataFrame(history),
        mined(number),
        pd.DataFrame(encoder_history),
        {**_records(), "mine": _mined_summary(number)},
    )


def _mined_summary(number: int) -> dict[str, object]:
    """Of round 2: tile 5 of tr3 is one of the five of round 1 and of the two of round 2."""
    return {
        "round": number,
        "policy": "hard",
        "jaccard": 0.166667 if number == 2 else None,
        "churn": 0.5 if number == 2 else None,
    }


def mined(number: int) -> pd.DataFrame:
    """Round 1: look-alike tile 5 and tile 6 of tr3, tile 3 of tr4; tiles 0 and 2 of tr1. Round 2:
    tile 5 of tr3 again.
    """
    picks = {
        1: [
            ("hard_negative", "tr3", 5),
            ("hard_negative", "tr4", 3),
            ("hard_negative", "tr3", 6),
            ("positive", "tr1", 0),
            ("positive", "tr1", 2),
        ]
    }
    picks[2] = [("hard_negative", "tr3", 5), ("positive", "tr2", 1)]
    table = pd.DataFrame(picks[number], columns=["role", "slide_id", "tile"]).merge(
        tiles().drop(columns="tissue"), on=["slide_id", "tile"]
    )
    table["rank"] = table.groupby("role").cumcount() + 1
    table["score"] = 0.95 - 0.1 * table["rank"].astype(np.float32)
    table = table.assign(
        logit=np.float32(1.25), round=number, policy="hard", scorer="0123456789abcdef"
    )
    return MINED.check(
        table.astype({"tile": "int32", "rank": "int32", "round": "int32", "score": "float32"}),
        "mined",
    )


def _records() -> dict[str, object]:
    return {
        "encoder": {"name": "tiny", "mean": [0.5, 0.5, 0.5]},
        "head": {"features": 8, "head": {"kind": "dsmil"}},
    }


def write_packs(folder: Path) -> None:
    """A pack for each slide; each tile is a plain colour of its own."""
    for place, slide_id in enumerate(sorted(CAST)):
        colours = [(200 - 9 * tile, 90 + 10 * place, 40 + 15 * tile) for tile in range(len(GRID))]
        packed = [
            PackTile(x, y, 0.8, encode(np.full((TILE_PX, TILE_PX, 3), colour, np.uint8), 90))
            for (x, y), colour in zip(GRID, colours, strict=True)
        ]
        write_pack(
            folder / f"{slide_id}.h5",
            packed,
            slide_id=slide_id,
            mpp=1.0,
            tile_px=TILE_PX,
            side=SIDE,
            planned=len(packed) + 1,
            places=20,
        )


def write_files(root: Path, count: int = 3) -> dict[str, Path]:
    """All that the stage `evaluate` reads, under `root`; its arguments, the outputs under
    `root`/results included.
    """
    truth = cohort()
    paths = {
        "slides": root / "slides.parquet",
        **{f"{split}_labels": root / "labels" / f"{split}.csv" for split in truth.labels},
        "annotations": root / "annotations",
        "quarantine": root / "quarantine.csv",
        "index": root / "index.parquet",
        **{name: root / name for name in ("packs", "scores", "heads", "encoders", "mined")},
        "metrics": root / "results" / "metrics.json",
        "plots": root / "results" / "plots",
        "report": root / "results" / "report.html",
        "model_card": root / "results" / "model_card.md",
        "data_card": root / "results" / "data_card.md",
    }
    SLIDES.write(truth.slides, paths["slides"])
    for split, table in truth.labels.items():
        LABELS.write(table, paths[f"{split}_labels"])
    for slide_id, regions in truth.annotations.items():
        write_annotation(regions, paths["annotations"] / f"{slide_id}.geojson")
    QUARANTINE.write(truth.quarantine, paths["quarantine"])
    TILES.write(truth.tiles, paths["index"])
    write_packs(paths["packs"])
    for results in rounds(count):
        SLIDE_SCORES.write(results.slide_scores, paths["scores"] / results.name / "slides.parquet")
        TILE_SCORES.write(results.tile_scores, paths["scores"] / results.name / "tiles.parquet")
        for kind, folder in (("encoder", paths["encoders"]), ("head", paths["heads"])):
            write_json(results.records[kind], folder / results.name / f"{kind}.json")
        results.head_history.to_csv(paths["heads"] / results.name / "history.csv", index=False)
        if results.mined is not None and results.encoder_history is not None:
            MINED.write(results.mined, paths["mined"] / results.name / "mined.parquet")
            write_json(results.records["mine"], paths["mined"] / results.name / "summary.json")
            results.encoder_history.to_csv(
                paths["encoders"] / results.name / "history.csv", index=False
            )
    return paths


def detections(
    lesions: list[float], of_lesions: str, false: list[float], of_false: str, of_slides: str
) -> Detections:
    """Each letter is the patient of a lesion, a false detection, a slide."""
    scores = [np.array(values, dtype=np.float64) for values in (lesions, false)]
    patients = [np.array(list(letters), dtype=str) for letters in (of_lesions, of_false, of_slides)]
    return Detections(scores[0], patients[0], scores[1], patients[1], patients[2])
