"""Heads of more than two classes: DSMIL with a stream a class, each trained, validated and mined
against the rest.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import HeadOutput, load_head, make_head, save_head
from hnm.learning.predict import predict
from hnm.learning.training.fit_head import LabelledSlide, fit_head, step_losses, steps_of, validate
from hnm.mining.select import mine
from hnm.tables import LABELS, TILE_SCORES, TILES
from tests.support.exactness import assert_close, assert_same_weights

SECTION = params.Head(epochs=10, patience=10, learning_rate=1e-2, dropout=0.0, attention_features=8)
RANKING = params.Ranking(top_k=2)


def cohort(count: int, seed: int) -> list[LabelledSlide]:
    """Slides of 5 to 7 tiles of three classes; two tiles of a slide are shifted in the feature of
    its class, label 0's in the third.
    """
    generator = torch.Generator().manual_seed(seed)
    slides = []
    for number in range(count):
        rows = torch.randn(5 + number % 3, 5, generator=generator)
        rows[:2, (2, 0, 1)[number % 3]] += 4
        slides.append(LabelledSlide(f"s{number:02}", rows, number % 3))
    return slides


def no_one(epoch: int, metrics: object) -> None:
    pass


def test_dsmil_of_three_classes_in_loops() -> None:
    head = make_head(4, params.Head(attention_features=3), classes=3).double().eval()
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    state = {name: tensor.tolist() for name, tensor in head.state_dict().items()}

    def linear(name: str, x: list[float]) -> list[float]:
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)
        ]

    x = rows.tolist()
    tile_logits = [linear("tile_stream", row) for row in x]
    queries = [
        [math.tanh(v) for v in linear("query.2", [max(0.0, u) for u in linear("query.0", row)])]
        for row in x
    ]
    values = [linear("value", row) for row in x]
    attentions, joined = [], []
    for label in range(3):
        critical = max(range(5), key=lambda i: tile_logits[i][label])
        raw = [
            math.exp(
                sum(a * b for a, b in zip(query, queries[critical], strict=True)) / math.sqrt(3)
            )
            for query in queries
        ]
        attentions.append([value / sum(raw) for value in raw])
        joined += [
            sum(a * value[j] for a, value in zip(attentions[label], values, strict=True))
            for j in range(4)
        ]
    output = head(rows)
    assert output.tile_logits.tolist() == [pytest.approx(row, abs=1e-10) for row in tile_logits]
    assert output.attention.T.tolist() == [pytest.approx(row, abs=1e-10) for row in attentions]
    assert output.slide_logit.tolist() == pytest.approx(linear("slide_stream", joined), abs=1e-10)
    assert head.labels == (0, 1, 2)
    view = output.of(2)
    assert (view.slide_logit.item(), view.tile_logits.tolist()) == (
        output.slide_logit[2].item(),
        output.tile_logits[:, 2].tolist(),
    )
    assert view.attention.tolist() == output.attention[:, 2].tolist()


def test_a_class_trains_its_own_tile_stream_alone() -> None:
    head = make_head(5, SECTION, classes=3)
    head.tile_loss(head(cohort(1, 1)[0].features).of(1), 1).backward()
    gradient = head.get_parameter("tile_stream.weight").grad
    assert gradient is not None and [row.abs().max().item() > 0 for row in gradient] == [
        False,
        True,
        False,
    ]


def test_step_losses_by_hand() -> None:
    """Six pairs of a class and another, each by the class's own logits."""
    outputs = [
        HeadOutput(
            torch.tensor(slide), torch.tensor(tiles), torch.full((len(tiles), 3), 1 / len(tiles))
        )
        for slide, tiles in (
            ([0.5, -1.0, 0.25], [[1.0, 0.0, -0.5], [-1.0, 2.0, 0.75]]),  # of label 0
            ([0.0, 1.5, -0.75], [[0.5, 1.0, -2.0]]),
            ([-2.0, 0.3, 1.0], [[0.2, -0.4, 0.6], [0.1, 0.9, 3.0], [-3.0, 0.0, 1.0]]),
        )
    ]
    slide = tile = rank = 0.0
    for label in range(3):
        for other in (other for other in range(3) if other != label):
            for number, sign in ((label, -1), (other, 1)):
                slide += math.log1p(math.exp(sign * outputs[number].slide_logit[label].item())) / 12
                tile += (
                    math.log1p(math.exp(sign * max(outputs[number].tile_logits[:, label].tolist())))
                    / 12
                )
            top = [
                sorted(outputs[number].tile_logits[:, label].tolist())[-2:]
                for number in (label, other)
            ]
            means = [sum(values) / len(values) for values in top]
            rank += max(0.0, 0.5 - means[0] + means[1]) / 6
    section = params.Ranking(on="logit", margin=0.5, top_k=2)
    assert [
        part.item()
        for part in step_losses(make_head(5, SECTION, classes=3), outputs[::-1], section)
    ] == pytest.approx([slide, tile, rank], abs=1e-6)


def test_a_step_takes_a_slide_of_each_class_and_an_epoch_shows_every_slide() -> None:
    slides = [
        LabelledSlide(f"{label}{i}", torch.zeros(1, 1), label)
        for label, count in enumerate((3, 7, 2))
        for i in range(count)
    ]
    steps = list(steps_of(slides, seed=0, epoch=1, classes=3))
    assert [[slide.label for slide in step] for step in steps] == [[2, 1, 0]] * 7
    drawn = Counter(slide.slide_id for step in steps for slide in step)
    assert (
        sorted(drawn[f"0{i}"] for i in range(3)) == [2, 2, 3]
        and [drawn[f"1{i}"] for i in range(7)] == [1] * 7
    )
    assert sorted(drawn[f"2{i}"] for i in range(2)) == [3, 4]


def test_three_classes_are_learnt_and_validated_each_against_the_rest() -> None:
    validation = cohort(15, seed=2)
    head, history = fit_head(cohort(30, seed=1), validation, SECTION, RANKING, no_one)
    best = max(history, key=lambda row: (row["validation_auc"], -row["validation_loss"]))
    assert head.classes == 3 and best["validation_auc"] > 0.9
    with torch.inference_mode():
        logits = torch.stack([head(slide.features).slide_logit for slide in validation]).numpy()
    truth = np.array([[float(slide.label == label) for label in range(3)] for slide in validation])
    entropies = np.logaddexp(0, (1 - 2 * truth) * logits).mean()
    assert validate(head, validation) == pytest.approx(
        (roc_auc_score(truth, logits, average="macro"), entropies), abs=1e-6
    )
    assert validate(head, validation) == (best["validation_auc"], best["validation_loss"])


def test_tiles_are_scored_and_mined_by_class_and_hard_negatives_are_of_slides_without_it() -> None:
    train = cohort(18, seed=1)
    head, _ = fit_head(train, cohort(9, seed=2), SECTION, RANKING, no_one)
    rows = [
        (slide.slide_id, tile, 10 * tile, 0, 10, 0.9)
        for slide in train
        for tile in range(len(slide.features))
    ]
    index = TILES.check(
        pd.DataFrame(rows, columns=list(TILES.columns)).astype(
            {"tile": "int32", "tissue": "float32"}
        ),
        "tiles",
    )
    of_slide = {slide.slide_id: slide.label for slide in train}
    for label in range(3):
        _, scores = predict(head, {slide.slide_id: slide.features for slide in train}, index, label)
        with torch.inference_mode():
            expected = torch.cat([head(slide.features).tile_logits[:, label] for slide in train])
        assert TILE_SCORES.check(scores, "scores")["logit"].tolist() == pytest.approx(
            expected.tolist(), abs=1e-5
        )  # of another call
        against_rest = LABELS.check(
            pd.DataFrame(
                {
                    "slide_id": list(of_slide),
                    "label": [int(own == label) for own in of_slide.values()],
                }
            ),
            "labels",
        )
        mined = mine(
            scores, against_rest, params.Mining(threshold=0.2, max_slide_share=1.0), 1
        ).tiles
        roles = mined["slide_id"].map(of_slide).eq(label)
        assert roles.eq(mined["role"] == "positive").all() and 0 < roles.sum() < len(roles)


def test_a_head_of_three_classes_comes_back_from_its_files(tmp_path: Path) -> None:
    head = make_head(5, SECTION, classes=3).eval()
    save_head(head, SECTION, tmp_path)
    rows = cohort(1, 1)[0].features
    loaded = load_head(tmp_path)
    assert_same_weights(loaded, head)
    for one, other in zip(loaded(rows), head(rows), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("kind", ["abmil", "mined"])
def test_other_kinds_are_refused(kind: str) -> None:
    section = params.Head.model_validate({"kind": kind})
    with pytest.raises(
        HeadError,
        match=(
            rf"head\.kind={kind} tells two classes apart, but there are 3; set head\.kind to dsmil"
        ),
    ):
        fit_head(cohort(9, 1), cohort(9, 2), section, RANKING, no_one)


def test_a_class_that_a_split_lacks_or_has_alone_is_refused() -> None:
    without = [slide for slide in cohort(9, 2) if slide.label != 1]
    with pytest.raises(
        HeadError,
        match=(
            "no validation slide with label 1 has tiles; the head needs all 3 classes: add slides"
            " or look"
        ),
    ):
        fit_head(cohort(9, 1), without, SECTION, RANKING, no_one)
    strange = [*cohort(9, 2), replace(cohort(1, 3)[0], slide_id="odd", label=3)]
    with pytest.raises(
        HeadError,
        match=(
            "validation slide odd has label 3, which no train slide has; move slides or correct the"
            " label"
        ),
    ):
        fit_head(cohort(9, 1), strange, SECTION, RANKING, no_one)
