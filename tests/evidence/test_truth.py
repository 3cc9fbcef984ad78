from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import shapely

from hnm.evidence.truth import contradictions, detect, drawn_classes, is_lesion, peaks, tile_truth
from hnm.params import Evaluate
from hnm.slides.annotations import Region

SECTION = Evaluate(lesion_share=0.25, lesion_names=("tumour",))


def row_of_tiles(slide_id: str, count: int, side: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slide_id": slide_id,
            "tile": range(count),
            "x": [side * place for place in range(count)],
            "y": 0,
            "side": side,
        }
    )


def truth_of(
    tiles: pd.DataFrame, label: int, regions: list[Region] | None, aspect: float = 1.0
) -> list[tuple[str, str | None]]:
    slide_id = tiles["slide_id"].iloc[0]
    table = tile_truth(
        tiles,
        {slide_id: label},
        {} if regions is None else {slide_id: regions},
        {slide_id: aspect},
        SECTION,
    )
    return [
        (truth, None if pd.isna(region) else region)
        for truth, region in zip(table["truth"], table["region"], strict=True)
    ]


class TestTileTruth:
    def test_covered_enough_is_lesion_touched_is_unclear_untouched_is_normal(self) -> None:
        # covers tile 0 whole, a quarter of tile 1, nothing of tile 3; a second lesion a tenth of
        # tile 2
        regions = [
            Region("Tumour", shapely.box(0, 0, 12.5, 10)),
            Region("TUMOUR", shapely.box(20, 0, 21, 10)),
        ]
        assert truth_of(row_of_tiles("s", 4), 1, regions) == [
            ("lesion", "lesion"),
            ("lesion", "lesion"),
            ("unclear", ""),
            ("normal", ""),
        ]

    def test_tiles_of_a_negative_slide_are_normal_whatever_is_drawn(self) -> None:
        regions = [
            Region("look-alike", shapely.box(0, 0, 10, 10)),
            Region("fold", shapely.box(10, 0, 12, 10)),
        ]
        assert truth_of(row_of_tiles("s", 2), 0, regions) == [
            ("normal", "look-alike"),
            ("normal", ""),
        ]

    def test_a_positive_slide_without_a_lesion_drawn_is_unclear(self) -> None:
        assert truth_of(row_of_tiles("s", 2), 1, None) == [("unclear", None), ("unclear", None)]
        assert truth_of(row_of_tiles("s", 1), 1, [Region("fold", shapely.box(0, 0, 10, 10))]) == [
            ("unclear", "fold")
        ]

    def test_the_larger_of_two_other_regions_names_the_tile_and_a_lesion_comes_first(self) -> None:
        regions = [
            Region("fold", shapely.box(0, 0, 4, 10)),
            Region("ink", shapely.box(4, 0, 10, 10)),
            Region("tumour", shapely.box(10, 0, 13, 10)),
        ]
        regions.append(Region("ink", shapely.box(13, 0, 20, 10)))
        assert [region for _, region in truth_of(row_of_tiles("s", 2), 1, regions)] == [
            "ink",
            "lesion",
        ]

    def test_tiles_are_as_high_as_their_aspect_says(self) -> None:
        region = Region("tumour", shapely.box(0, 10, 10, 20))
        assert truth_of(row_of_tiles("s", 1), 1, [region], aspect=1.0) == [("normal", "")]
        assert truth_of(row_of_tiles("s", 1), 1, [region], aspect=2.0) == [("lesion", "lesion")]

    def test_slides_without_a_label_are_dropped(self) -> None:
        tiles = pd.concat([row_of_tiles("a", 2), row_of_tiles("b", 3)])
        table = tile_truth(tiles, {"b": 0}, {}, {"a": 1.0, "b": 1.0}, SECTION)
        assert table["slide_id"].tolist() == ["b"] * 3
        assert tile_truth(tiles, {}, {}, {}, SECTION).empty

    def test_names_are_compared_whatever_their_case(self) -> None:
        assert is_lesion("TuMoUr", SECTION)
        assert not is_lesion("tumour bed", SECTION)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("Tumor", True),
            ("Tumor: Positive", True),
            ("TUMOUR:negative", True),
            (" Metastases ", True),
            ("Ka\u0308se  rei: x", True),  # as macOS writes an umlaut
            ("_0", True),
            ("Stroma: Tumor", False),
            ("Tumor bed", False),
            ("tumor-like", False),
            ("None", False),
            ("Karzinom", False),
            ("Region*", False),
            (":", False),
        ],
    )
    def test_derived_classes_count_as_the_class_that_they_derive_from(
        self, name: str, expected: bool
    ) -> None:
        section = Evaluate(lesion_names=(*Evaluate().lesion_names, "K\u00e4se rei"))
        assert is_lesion(name, section) is expected
        tiles = row_of_tiles("s", 2)
        table = tile_truth(
            tiles, {"s": 1}, {"s": [Region(name, shapely.box(0, 0, 10, 10))]}, {"s": 1.0}, section
        )
        assert table["truth"].tolist() == (
            ["lesion", "normal"] if expected else ["unclear", "unclear"]
        )

    def test_a_name_that_a_project_chooses_counts_alone(self) -> None:
        assert is_lesion("None", Evaluate(lesion_names=("none",))) and not is_lesion(
            "tumour", Evaluate(lesion_names=("none",))
        )
        assert is_lesion(
            "Tumor: Positive", Evaluate(lesion_names=("Tumor: Positive",))
        ) and not is_lesion("Tumor", Evaluate(lesion_names=("Tumor: Positive",)))

    def test_what_lies_under_a_lesion_of_a_negative_slide_is_unclear(self) -> None:
        # covers tile 0, a tenth of tile 1, nothing of tile 2
        regions = [Region("tumour", shapely.box(0, 0, 11, 10))]
        assert truth_of(row_of_tiles("s", 3), 0, regions) == [
            ("unclear", "lesion"),
            ("unclear", ""),
            ("normal", ""),
        ]


class TestContradictions:
    ANNOTATIONS: ClassVar = {
        "pos": [Region("Tumour", shapely.box(0, 0, 1, 1))],
        "silent": [
            Region("None", shapely.box(0, 0, 1, 1)),
            Region("None", shapely.box(2, 0, 3, 1)),
            Region("fold", shapely.box(5, 0, 6, 1)),
        ],
        "empty": [],
        "neg": [Region("fold", shapely.box(0, 0, 1, 1))],
        "wrong": [
            Region("tumour: Positive", shapely.box(0, 0, 1, 1)),
            Region("fold", shapely.box(2, 0, 3, 1)),
        ],
        "lost": [Region("tumour", shapely.box(0, 0, 1, 1))],  # has no label: it is in quarantine
    }
    LABELS: ClassVar = {"pos": 1, "silent": 1, "empty": 1, "neg": 0, "wrong": 0, "bare": 1}

    def test_the_classes_that_were_drawn_are_counted(self) -> None:
        drawn = [
            (own.name, own.regions, own.slides, own.is_lesion)
            for own in drawn_classes(self.ANNOTATIONS, SECTION)
        ]
        assert drawn == [
            ("fold", 3, 3, False),
            ("None", 2, 1, False),
            ("Tumour", 1, 1, True),
            ("tumour", 1, 1, True),
            ("tumour: Positive", 1, 1, True),
        ]

    def test_a_negative_slide_with_and_a_positive_one_without_a_lesion(self) -> None:
        wrong, silent = contradictions(self.ANNOTATIONS, self.LABELS, SECTION)
        assert wrong.startswith(
            "1 annotated slides of label 0 have lesions drawn on them: wrong (fold 1, tumour:"
            " Positive 1); mining takes such tumour"
        )
        assert silent.startswith(
            "2 annotated slides of label 1 have no lesion among their regions: empty (no region),"
            " silent (None 2, fold 1); the truth"
        )
        assert silent.endswith(
            "name the classes that are lesions in evaluate.lesion_names (now tumour), or draw the"
            " lesions"
        )

    def test_nothing_is_said_where_they_agree(self) -> None:
        agreeing = {slide_id: self.ANNOTATIONS[slide_id] for slide_id in ("pos", "neg", "lost")}
        assert (
            contradictions(agreeing, self.LABELS, SECTION) == []
            and contradictions({}, self.LABELS, SECTION) == []
        )

    def test_many_slides_are_counted_and_the_first_named(self) -> None:
        many = {f"s{number:02d}": self.ANNOTATIONS["wrong"] for number in range(12)}
        (text,) = contradictions(many, dict.fromkeys(many, 0), SECTION)
        assert (
            text.startswith("12 annotated")
            and "s09 (" in text
            and "s10" not in text
            and " and 2 more;" in text
        )


class TestPeaks:
    def test_worked_example(self) -> None:
        # 0.2 0.9 0.1      0.9 beats its neighbours; 0.8 touches it across a corner;
        # 0.3 0.1 0.8      0.5 is two places away from 0.9 and next to 0.3 alone
        # 0.5 (no tile)    0.7 lies apart
        scores = {
            (0, 0): 0.2,
            (1, 0): 0.9,
            (2, 0): 0.1,
            (0, 1): 0.3,
            (1, 1): 0.1,
            (2, 1): 0.8,
            (0, 2): 0.5,
            (9, 9): 0.7,
        }
        tiles = pd.DataFrame(
            [(100 * x + 7, 50 * y, 100, score) for (x, y), score in scores.items()],
            columns=["x", "y", "side", "score"],
        )
        assert np.flatnonzero(peaks(tiles, aspect=0.5)).tolist() == [1, 6, 7]

    def test_of_equal_neighbours_the_first_is_the_peak(self) -> None:
        tiles = row_of_tiles("s", 3).assign(score=0.5)
        assert peaks(tiles, 1.0).tolist() == [True, False, False]

    @pytest.mark.parametrize("seed", range(3))
    def test_the_definition_in_plain_loops(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        places = rng.permutation(36)[:25]
        tiles = pd.DataFrame(
            {
                "x": places % 6 * 8,
                "y": places // 6 * 8,
                "side": 8,
                "score": rng.permutation(25) / 25,
            }
        )
        rows = list(tiles.itertuples())
        expected = [
            not any(
                other.score > tile.score and max(abs(other.x - tile.x), abs(other.y - tile.y)) == 8
                for other in rows
                if other is not tile
            )
            for tile in rows
        ]
        assert peaks(tiles, 1.0).tolist() == expected


class TestDetect:
    def test_each_lesion_has_its_best_peak_and_the_rest_is_false(self) -> None:
        # positive slide: peaks are tile 0 (0.9), 2 (0.4), 5 (0.7); lesions over tiles 0 and 2, on
        # the edge of 5, and far away
        positive = row_of_tiles("a", 7).assign(
            patient_id="p", score=[0.9, 0.1, 0.4, 0.2, 0.3, 0.7, 0.6]
        )
        negative = row_of_tiles("b", 3).assign(patient_id="q", score=[0.8, 0.1, 0.5])
        unknown = row_of_tiles("c", 3).assign(patient_id="r", score=0.99)
        lesions = [
            Region("tumour", shapely.box(5, 0, 22, 10)),
            Region("tumour", shapely.box(20, 2, 23, 4)),
            Region("tumour", shapely.box(200, 0, 210, 9)),
        ]
        found = detect(
            pd.concat([positive, negative, unknown]),
            {"a": 1, "b": 0, "c": 1},
            {"a": [*lesions, Region("fold", shapely.box(50, 0, 60, 9))]},
            {"a": 1.0, "b": 1.0, "c": 1.0},
            SECTION,
        )
        assert found.slides == 2
        assert sorted(found.lesion_scores.tolist()) == [-np.inf, 0.9]
        assert sorted(
            zip(found.false_scores.tolist(), found.false_patients.tolist(), strict=True)
        ) == [(0.5, "q"), (0.7, "p"), (0.8, "q")]
        assert (found.lesion_patients.tolist(), found.slide_patients.tolist()) == (
            ["p", "p"],
            ["p", "q"],
        )

    def test_peaks_on_a_lesion_of_a_negative_slide_count_for_nothing(self) -> None:
        # peaks are tiles 0 (0.9), on the lesion, and 2 (0.5), beside it
        negative = row_of_tiles("b", 3).assign(patient_id="q", score=[0.9, 0.1, 0.5])
        found = detect(
            negative,
            {"b": 0},
            {"b": [Region("tumour", shapely.box(0, 0, 9, 9))]},
            {"b": 1.0},
            SECTION,
        )
        assert (found.lesion_scores.tolist(), found.false_scores.tolist(), found.slides) == (
            [],
            [0.5],
            1,
        )

    def test_without_slides_nothing_is_found(self) -> None:
        found = detect(
            row_of_tiles("a", 2).assign(patient_id="p", score=0.5),
            {"a": 1},
            {},
            {"a": 1.0},
            SECTION,
        )
        assert (len(found.lesion_scores), len(found.false_scores), found.slides) == (0, 0, 0)
