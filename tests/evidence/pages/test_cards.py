"""Cards of the tiny cohort: every number in them is the run's."""

import itertools
import re
from dataclasses import replace
from html import unescape

import pandas as pd
import pytest
import shapely
from markdown_it import MarkdownIt

from hnm.evidence.evaluation import Evaluation, evaluate_rounds
from hnm.evidence.pages.cards import card_html, data_card, model_card, split_counts
from hnm.params import Evaluate
from hnm.slides.annotations import Region
from tests.support import evidence as tiny

SETTINGS = tiny.SETTINGS


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))


def rows(card: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = itertools.dropwhile(
        lambda line: not line.startswith("|"), card.partition(f"\n## {heading}\n")[2].splitlines()
    )
    table = list(itertools.takewhile(lambda line: line.startswith("|"), below))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


class TestModelCard:
    def test_what_it_is(self, evaluation: Evaluation) -> None:
        card = model_card(evaluation, SETTINGS)
        assert card.startswith("# Model card: tiny, round 1\n")
        assert (
            "`tiny`, fine-tuned in 1 round of hard negative mining, gives a feature for each tile"
            " of 32 px at 1.0 µm per pixel; a head of kind `dsmil`" in card
        )
        assert "positive from the score 0.550 on" in card  # midway between 0.75 and 0.35

    def test_training_knows_the_rounds_of_this_model_alone(self, evaluation: Evaluation) -> None:
        card = model_card(evaluation, SETTINGS)
        assert rows(card, "Training") == [
            ["train", "4", "2", "4", "44"],
            ["validation", "2", "1", "2", "22"],
            ["test", "4", "2", "3", "44"],
        ]
        assert "| 1 | 3 | 2 | 3 | 0 |" in card and "| 2 | 1 | 1 | 2 | 0 |" not in card

    def test_numbers_are_those_of_the_evaluation(self, evaluation: Evaluation) -> None:
        numbers = {
            row[0]: row[1:]
            for row in rows(model_card(evaluation, SETTINGS), "Numbers on the test slides")
        }
        auc, tiles = (
            evaluation.chosen.numbers["test"]["auc"],
            evaluation.chosen.numbers["test_tiles"]["auc"],
        )
        assert numbers["AUC"] == ["0.750", f"{auc.low:.3f} to {auc.high:.3f}", ""]
        assert numbers["tile AUC, where lesions are drawn"][0] == f"{tiles.value:.3f}"
        hit = evaluation.chosen.numbers["test_tiles"]["lesions_hit"]
        assert numbers["share of lesions hit"][0] == f"{hit.value:.3f}"
        assert (
            numbers["share of lesions hit"][2]
            == f"from the tile score {evaluation.chosen.tile_threshold:.3f} on"
        )
        assert len(numbers) == len(evaluation.chosen.numbers["test"]) + len(
            evaluation.chosen.numbers["test_tiles"]
        )

    def test_limits_say_what_cannot_be_said(self, evaluation: Evaluation) -> None:
        assert f"the test AUC changed by {evaluation.gain.value:+.3f}" in model_card(
            evaluation, SETTINGS
        )
        first = evaluate_rounds(tiny.cohort(), tiny.rounds(1), Evaluate(resamples=100))
        card = model_card(first, SETTINGS)
        assert (
            "Validation chose round 0: no mining is part of this model." in card
            and "The encoder saw no labels." in card
        )
        labels = tiny.cohort().labels
        blind = evaluate_rounds(
            tiny.cohort(labels={**labels, "test": labels["test"].assign(label=0)}),
            tiny.rounds(),
            Evaluate(resamples=100),
        )
        assert "Whether mining helped cannot be said: there is no positive." in model_card(
            blind, SETTINGS
        )

    def test_params(self, evaluation: Evaluation) -> None:
        params = dict(rows(model_card(evaluation, SETTINGS), "Params"))
        assert (params["mining.threshold"], params["head.kind"], params["tiles.tile_px"]) == (
            "0.25",
            "dsmil",
            "32",
        )


class TestDataCard:
    def test_cohort(self, evaluation: Evaluation) -> None:
        card = data_card(evaluation, SETTINGS)
        assert card.startswith(
            "# Data card: tiny\n\n12 slides in `slides.csv`; 10 are used, 2 are in quarantine."
        )
        assert rows(card, "Splits")[0] == ["train", "4", "2", "2", "4", "44", "3"]
        assert "10 patients; 0 of them are in more than one split." in card
        assert "- vendor aperio: 11 slides\n- µm per pixel at level 0: 0.5\n" in card
        assert (
            "grids of the slides that were cut have 200 tiles; 80 show less than 50 % tissue, 10"
            " could not be read, 110 are cut." in card
        )
        assert (
            "110 tiles of 32 px at 1.0 µm per pixel, at least 50 % tissue" in card
            and "11 to 11, in the median 11" in card
        )

    def test_annotations_and_what_was_left_out(self, evaluation: Evaluation) -> None:
        card = data_card(evaluation, SETTINGS)
        assert rows(card, "Annotations") == [
            ["Tumour", "3", "3", "lesion"],
            ["look-alike", "1", "1", "no lesion"],
        ]
        assert rows(card, "Left out") == [
            ["bad", "open", "not a slide"],
            ["te5", "tissue", r"no tissue \<found\>"],
        ]

    def test_text_of_a_person_cannot_break_a_table(self, evaluation: Evaluation) -> None:
        bad = pd.DataFrame({"slide_id": ["bad"], "step": ["open"], "reason": ["a | b\nc"]})
        card = data_card(replace(evaluation, cohort=tiny.cohort(quarantine=bad)), SETTINGS)
        assert rows(card, "Left out") == [["bad", "open", r"a \| b c"]]

    def test_another_file_is_another_digest(self, evaluation: Evaluation) -> None:
        slides = tiny.cohort().slides
        other = replace(
            evaluation,
            cohort=tiny.cohort(slides=slides.assign(fingerprint=["g", *slides["fingerprint"][1:]])),
        )
        digests = [
            re.search(r"`([0-9a-f]{16})`", data_card(own, SETTINGS)) for own in (evaluation, other)
        ]
        assert digests[0] and digests[1] and digests[0][1] != digests[1][1]


def test_quarantined_slides_are_not_counted() -> None:
    assert [
        (split.name, split.slides, split.positives) for split in split_counts(tiny.cohort())
    ] == [("train", 4, 2), ("validation", 2, 1), ("test", 4, 2)]


def test_html_has_no_title_lower_headings_and_no_raw_html() -> None:
    html = card_html("# Title\n\n<script>x</script>\n\n## Part\n\n| a |\n|---|\n| <b>1</b> |\n")
    assert "Title" not in html and "<h3>Part</h3>" in html and "<table>" in html
    assert "<script>" not in html and "&lt;b&gt;1&lt;/b&gt;" in html


HOSTILE = (
    "<script>alert(1)</script>",
    "a | b",
    "`code`",
    "[link](https://evil.example)",
    "![picture](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "*bold* and _slanted_ and ~~gone~~",
    "&lt;b&gt;",
    "back\\slash \\| and \\<b>",
    "line\nbreak\r\n| x | y |",
    "javascript:alert(1) <https://evil.example>",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_text_is_shown_as_it_is(evaluation: Evaluation, text: str) -> None:
    """In each place of a card where text of a manifest, a slide, an annotation or params.yaml
    stands.
    """
    bad = pd.DataFrame({"slide_id": ["bad"], "step": ["open"], "reason": [text]})
    drawn = {"tr1": [Region(text, shapely.box(0, 0, 9, 9))]}
    cohort = tiny.cohort(quarantine=bad, annotations=drawn)
    cohort = replace(cohort, slides=cohort.slides.assign(vendor=text))
    hostile = {
        **SETTINGS,
        "cohort": SETTINGS["cohort"].model_copy(update={"manifest": text}),
        "encoder": SETTINGS["encoder"].model_copy(update={"weights": text}),
    }
    for card, places in (
        (data_card(replace(evaluation, cohort=cohort), hostile), 4),
        (model_card(evaluation, hostile), 2),
    ):
        html = card_html(card)
        words = " ".join(text.split())
        assert unescape(html).count(words) >= places - 1, html
        for mark in ("<script", "<a ", "<img", "<em", "<strong>bold", "<s>", "<b>"):
            assert mark not in html
        plain = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(card)
        assert "<script" not in plain and "<a " not in plain and "<img" not in plain
