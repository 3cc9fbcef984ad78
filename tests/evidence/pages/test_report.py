import base64
import io
import itertools
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
import shapely
from PIL import Image

from hnm.evidence.evaluation import Evaluation, evaluate_rounds
from hnm.evidence.pages import plots
from hnm.evidence.pages.charts import CHARTS
from hnm.evidence.pages.interactive import library, live
from hnm.evidence.pages.report import NEGATIVES, Origin, render_report
from hnm.evidence.test_ledger import Looks
from hnm.params import Evaluate, Mining
from hnm.slides.annotations import Region
from hnm.slides.cutting.pack import Pack
from tests.support import evidence as tiny

ORIGIN = Origin(
    Looks(0, 0),
    "# Model card: tiny\n\n## Limits\n\n| a |\n|---|\n| 1 |\n",
    "# Data card: tiny\n",
    [("head@0", "data/scores/0", "0a1b.dir")],
)
VOID = {"meta", "link", "img", "br", "image"}


class Page(HTMLParser):
    """The page's elements, its text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data if self._open and self._open[-1] != "script" else ""

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    tiny.write_packs(folder)
    return folder


def rendered(evaluation: Evaluation, packs: Path) -> str:
    return render_report(evaluation, lambda slide_id: Pack(packs / f"{slide_id}.h5"), ORIGIN)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))


@pytest.fixture(scope="module")
def html(evaluation: Evaluation, packs: Path) -> str:
    return rendered(evaluation, packs)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


class TestPage:
    def test_every_picture_has_a_text_in_its_place(self, page: Page) -> None:
        images, drawings = page.all("img"), page.all("svg")
        assert len(images) == len(CHARTS) + (3 + 2) + (
            1 + 1
        )  # mined tiles of round 1 and of round 2
        assert all(image["alt"] for image in images)
        assert len(drawings) == 1 + 2 * 4  # the loop, and two views of each test slide
        assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)

    def test_every_chart_is_a_picture_and_a_drawing_to_point_at(self, page: Page) -> None:
        live = {own["id"]: own for own in page.all("div") if own.get("class") == "live"}
        assert set(live) == {f"chart-{name}" for name in CHARTS}
        assert {own["aria-label"] for own in live.values()} < {
            image["alt"] for image in page.all("img")
        }
        assert all(own["role"] == "img" for own in live.values())

    def test_says_how_many_tiles_each_rule_took(self, html: str) -> None:
        table = html[html.index("How many tiles of the cut slides") :]
        table = table[: table.index("</table>")]
        assert re.findall(r"<th[^>]*>([^<]+)</th>", table) == [
            "Grid",
            "Too little tissue",
            "Unreadable",
            "Cut",
        ]
        assert re.findall(r"<td>(\d+)</td>", table) == ["200", "80", "10", "110"]

    def test_plotly_stands_in_the_page_once(
        self, html: str, page: Page, evaluation: Evaluation
    ) -> None:
        assert [
            script for script in page.all("script") if script
        ] == []  # neither `src` nor anything else
        assert html.count(library()) == 1
        assert live({name: describe(evaluation) for name, describe in CHARTS.items()}) in html

    def test_nothing_comes_from_outside(self, html: str, page: Page) -> None:
        links = [
            attributes[name]
            for _, attributes in page.elements
            for name in ("src", "href", "action", "data")
            if attributes.get(name)
        ]
        assert links
        assert all(link.startswith(("data:", "#")) for link in links)
        own = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html.replace(library(), ""))
        assert not re.search(r"@import|url\((?!#)", own)
        assert set(re.findall(r"http[^ ]*", own)) == {'http-equiv="Content-Security-Policy"'}
        policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
        assert (
            policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
            " 'unsafe-inline'"
        )

    def test_inner_links_lead_somewhere_and_ids_are_unique(self, page: Page) -> None:
        ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
        assert set(ids.values()) == {1}
        assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(ids)
        assert {section["aria-labelledby"] for section in page.all("section")} <= set(ids)

    def test_headings_have_an_order_and_table_heads_a_scope(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
        assert all(head["scope"] in {"col", "row"} for head in page.all("th"))

    def test_says_what_the_chosen_round_is_worth(self, page: Page) -> None:
        text = " ".join(page.text.split())
        assert (
            "Validation picks round 1. On 4 test slides of 3 patients its AUC is 0.750 (95 %"
            " interval" in text
        )
        assert "cannot tell whether mining helped" in text
        assert "3 hard negatives from 2 slides of 2 patients" in text.replace("Round 1: ", "")
        assert (
            "50 % lie on a drawn region that is no lesion, against 9 % of all tiles of annotated"
            " negative train slides." in text
        )

    def test_says_what_it_took_and_where_it_comes_from(self, page: Page) -> None:
        text = "".join(page.text.split())
        # round, tiles embedded, mined, of 44 train tiles, epochs of encoder and head
        assert "011000%02" in text and "1110511%32" in text
        assert "data/scores/0head@00a1b.dir" in text

    def test_says_how_the_mined_set_changes(self, page: Page) -> None:
        # of round 2's two tiles one was mined in round 1, which had five
        assert "Churn:sharethatwasnotminedbefore20.1750%" in "".join(page.text.split())

    def test_texts_from_outside_are_escaped(self, html: str) -> None:
        assert "no tissue &lt;found&gt;" in html

    def test_mined_tiles_are_shown_with_place_score_and_truth(self, page: Page) -> None:
        images = {image["alt"]: image["src"] for image in page.all("img")}
        alt = "Negative 1 of round 1: slide tr3 at x 64, y 64, score 0.85, look-alike"
        picture = Image.open(
            io.BytesIO(base64.b64decode(images[alt].removeprefix("data:image/jpeg;base64,")))
        )
        # the eighth pack's sixth tile
        assert picture.getpixel((16, 16)) == pytest.approx(
            (200 - 9 * 5, 90 + 10 * sorted(tiny.CAST).index("tr3"), 40 + 15 * 5), abs=6
        )

    def test_bytes_are_equal_for_equal_input(
        self, html: str, evaluation: Evaluation, packs: Path
    ) -> None:
        assert rendered(evaluation, packs) == html


class TestOtherRuns:
    def test_round_0_alone(self, packs: Path) -> None:
        page = Page(
            rendered(evaluate_rounds(tiny.cohort(), tiny.rounds(1), Evaluate(resamples=100)), packs)
        )
        assert "Nothing was mined." in page.text
        assert "Mined tiles" not in page.text

    def test_nothing_annotated_and_one_class(self, packs: Path) -> None:
        cohort = tiny.cohort()
        test = cohort.labels["test"]
        one_class = replace(
            cohort, labels={**cohort.labels, "test": test[test["label"] == 0]}, annotations={}
        )
        page = Page(
            rendered(evaluate_rounds(one_class, tiny.rounds(2), Evaluate(resamples=100)), packs)
        )
        text = " ".join(page.text.split())
        assert "On 2 test slides nothing can be said of its AUC: there is no positive." in text
        assert "Whether mining helped cannot be said: there is no positive." in text
        assert "None of them lies on an annotated slide." in text

    def test_a_lesion_among_the_hard_negatives_stands_above_the_galleries(
        self, packs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plots, "png", lambda chart: b"")  # drawing takes most of the time
        drawn = {**tiny.annotations(), "tr4": [Region("Tumour", shapely.box(0, 0, 999, 999))]}
        text = " ".join(
            Page(
                rendered(
                    evaluate_rounds(
                        tiny.cohort(annotations=drawn), tiny.rounds(2), Evaluate(resamples=100)
                    ),
                    packs,
                )
            ).text.split()
        )
        assert (
            "Look at this first: round 1 has hard negatives on drawn lesions of slides labelled 0:"
            " tr4 (1);" in text
        )


def test_the_report_has_words_for_each_policy_that_mines() -> None:
    assert {*NEGATIVES, "none"} == set(get_args(Mining.model_fields["policy"].annotation))
