"""Heads: the published equations in loops, invariances, gradients, and files."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import KINDS, Head, HeadOutput, Mined, load_head, make_head, save_head
from hnm.learning.heads.mined import PENALTIES
from hnm.learning.heads.transmil import nystroem_attention, pseudo_inverse, segment_means
from tests.support.exactness import assert_close, assert_same_weights

Vector = list[float]


def section_of(kind: str) -> params.Head:
    return params.Head.model_validate(
        {
            "kind": kind,
            "attention_features": 16 if kind == "transmil" else 4,
            "top_k": 3,
            "instance_tiles": 2,
        }
    )


def double(kind: str, width: int = 6) -> Head:
    """A head of float64, so that the loops agree to many digits."""
    return make_head(width, section_of(kind)).double().eval()


def features(tiles: int, width: int = 6, seed: int = 3) -> torch.Tensor:
    return torch.randn(
        tiles, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class ByHand:
    """A head's weights, and what a layer does with one vector."""

    def __init__(self, head: Head) -> None:
        self.state = {name: tensor.tolist() for name, tensor in head.state_dict().items()}

    def linear(self, name: str, x: Vector) -> Vector:
        return [
            dot(weights, x) + b
            for weights, b in zip(
                self.state[f"{name}.weight"], self.state[f"{name}.bias"], strict=True
            )
        ]

    def norm(self, name: str, x: Vector) -> Vector:
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
        return [
            (v - mean) / deviation * w + b
            for v, w, b in zip(
                x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], strict=True
            )
        ]


def dot(a: Vector, b: Vector) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def relu(x: Vector) -> Vector:
    return [max(0.0, v) for v in x]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(x: Vector) -> Vector:
    return [math.exp(v) / sum(math.exp(u) for u in x) for v in x]


def weighted(weights: Vector, rows: list[Vector]) -> Vector:
    return [
        sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(len(rows[0]))
    ]


def assert_says(
    output: HeadOutput, slide_logit: float, tile_logits: Vector, attention: Vector
) -> None:
    assert output.tile_logits.tolist() == pytest.approx(tile_logits, abs=1e-10)
    assert output.attention.tolist() == pytest.approx(attention, abs=1e-10)
    assert output.slide_logit.shape == () and output.slide_logit.item() == pytest.approx(
        slide_logit, abs=1e-10
    )


class TestEquations:
    def test_dsmil(self) -> None:
        head, x = double("dsmil"), features(5).tolist()
        hand = ByHand(head)
        tile_logits = [hand.linear("tile_stream", row)[0] for row in x]
        critical = max(range(5), key=lambda i: tile_logits[i])
        queries = [
            [math.tanh(v) for v in hand.linear("query.2", relu(hand.linear("query.0", row)))]
            for row in x
        ]
        attention = softmax([dot(query, queries[critical]) / math.sqrt(4) for query in queries])
        pooled = weighted(attention, [hand.linear("value", row) for row in x])
        assert_says(
            head(features(5)), hand.linear("slide_stream", pooled)[0], tile_logits, attention
        )

    @staticmethod
    def gated(hand: ByHand, x: list[Vector]) -> tuple[list[Vector], Vector]:
        """Hidden features and gated attention of ABMIL and CLAM."""
        hidden = [relu(hand.linear("hidden.0", row)) for row in x]
        assert len(hidden[0]) == 8  # twice as wide as the gate
        raw = []
        for h in hidden:
            content, gate = hand.linear("content.0", h), hand.linear("gate.0", h)
            raw.append(
                hand.linear(
                    "weigh", [math.tanh(c) * sigmoid(g) for c, g in zip(content, gate, strict=True)]
                )[0]
            )
        return hidden, softmax(raw)

    def test_abmil(self) -> None:
        head = double("abmil")
        hand = ByHand(head)
        hidden, attention = self.gated(hand, features(5).tolist())
        slide_logit, tile_logits = (
            hand.linear("classifier", weighted(attention, hidden))[0],
            [hand.linear("classifier", h)[0] for h in hidden],
        )
        assert slide_logit == pytest.approx(dot(attention, tile_logits))
        assert_says(head(features(5)), slide_logit, tile_logits, attention)

    def test_clam_sb(self) -> None:
        head = double("clam_sb")
        hand = ByHand(head)
        hidden, attention = self.gated(hand, features(5).tolist())
        tile_logits = [hand.linear("instance_classifier", h)[0] for h in hidden]
        assert_says(
            head(features(5)),
            hand.linear("classifier", weighted(attention, hidden))[0],
            tile_logits,
            attention,
        )

    def test_mean_max_inherit_and_mined(self) -> None:
        x = features(5).tolist()
        for kind in ("mean", "max", "inherit", "mined"):
            head = double(kind)
            tile_logits = [ByHand(head).linear("classifier", row)[0] for row in x]
            best = sorted(range(5), key=lambda i: -tile_logits[i])[
                : {"mean": 5, "max": 1, "inherit": 3, "mined": 3}[kind]
            ]
            attention = [1 / len(best) if i in best else 0.0 for i in range(5)]
            assert_says(
                head(features(5)),
                sum(tile_logits[i] for i in best) / len(best),
                tile_logits,
                attention,
            )

    @pytest.mark.parametrize(
        "tiles", [1, 3, 4, 20]
    )  # 1, 4, 4, 25 tokens behind the class token, 8 landmarks
    def test_transmil(self, tiles: int) -> None:
        head = double("transmil")
        assert_says(head(features(tiles)), *transmil(ByHand(head), features(tiles).tolist()))

    def test_features_are_standardised_and_a_constant_one_stays_as_it_is(self) -> None:
        head, rows = double("mean"), features(5)
        head.standardise(torch.arange(6) / 10, torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5, 1.0]))
        expected = head.pool(
            (rows - torch.arange(6).double() / 10) / torch.tensor([0.5, 1.0, 2.0, 1.0, 1.5, 1.0])
        )
        assert head(rows).tile_logits.tolist() == pytest.approx(
            expected.tile_logits.tolist(), abs=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_slides_together_are_what_each_is_alone_and_so_are_the_gradients(kind: str) -> None:
    head = double(kind)
    slides = [features(tiles, seed=tiles) for tiles in (5, 1, 9)]
    gradients = []
    for outputs in (head.together(slides), [head(slide) for slide in slides]):
        gradients.append([tensor.flatten().tolist() for output in outputs for tensor in output])
        head.zero_grad()
        sum(
            (slide + 1) * (output.slide_logit.square().sum() + output.tile_logits.square().sum())
            for slide, output in enumerate(outputs)
        ).backward()
        gradients[-1] += [
            weight.grad.flatten().tolist()
            for weight in head.parameters()
            if weight.grad is not None
        ]
    together, alone = gradients
    assert len(together) == len(alone) > 9
    for numbers, expected in zip(together, alone, strict=True):
        assert numbers == pytest.approx(expected, abs=1e-10)


def transmil(hand: ByHand, x: list[Vector]) -> tuple[float, Vector, Vector]:
    """TransMIL in loops: slide logit, tile logits, attention."""
    tokens = [relu(hand.linear("token", row)) for row in x]
    side = math.ceil(math.sqrt(len(x)))
    rows = [*hand.state["class_token"], *tokens, *tokens[: side * side - len(x)]]
    rows, _ = transmil_layer(hand, "first", rows, len(x))
    rows, attention = transmil_layer(hand, "second", transmil_positions(hand, rows, side), len(x))
    logits = [hand.linear("classifier", hand.norm("norm", row))[0] for row in rows]
    return logits[0], logits[1 : 1 + len(x)], attention


def transmil_layer(
    hand: ByHand, name: str, rows: list[Vector], tiles: int
) -> tuple[list[Vector], Vector]:
    projected = [
        [dot(w, row) for w in hand.state[f"{name}.queries_keys_values.weight"]]
        for row in (hand.norm(f"{name}.norm", row) for row in rows)
    ]
    width, d = len(rows[0]), len(rows[0]) // 8
    joined: list[Vector] = [[] for _ in rows]
    attention = [0.0] * tiles
    for part in range(8):
        q, k, v = (
            [row[third * width + part * d : third * width + (part + 1) * d] for row in projected]
            for third in range(3)
        )
        seen = attend(q, k, v) if len(rows) <= width // 2 else nystroem(q, k, v, width // 2)
        kernel = [w[0] for w in hand.state[f"{name}.neighbours.weight"][part][0]]
        for i, row in enumerate(seen):
            near = [(kernel[t + 16], v[i + t]) for t in range(-16, 17) if 0 <= i + t < len(rows)]
            joined[i] += [row[j] + sum(w * other[j] for w, other in near) for j in range(d)]
        of_part = softmax([dot(q[0], key) / math.sqrt(d) for key in k[1 : 1 + tiles]])
        attention = [a + o / 8 for a, o in zip(attention, of_part, strict=True)]
    return [
        [u + w for u, w in zip(row, hand.linear(f"{name}.join", new), strict=True)]
        for row, new in zip(rows, joined, strict=True)
    ], attention


def transmil_positions(hand: ByHand, rows: list[Vector], side: int) -> list[Vector]:
    placed = [list(row) for row in rows]
    for number, size in enumerate((7, 5, 3)):
        kernels, biases = (
            hand.state[f"positions.convolutions.{number}.weight"],
            hand.state[f"positions.convolutions.{number}.bias"],
        )
        for c, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            for y in range(side):
                for x in range(side):
                    placed[1 + y * side + x][c] += bias
                    for dy in range(-(size // 2), size // 2 + 1):
                        for dx in range(-(size // 2), size // 2 + 1):
                            if 0 <= y + dy < side and 0 <= x + dx < side:
                                placed[1 + y * side + x][c] += (
                                    kernel[0][dy + size // 2][dx + size // 2]
                                    * rows[1 + (y + dy) * side + x + dx][c]
                                )
    return placed


def attend(q: list[Vector], k: list[Vector], v: list[Vector]) -> list[Vector]:
    return [
        weighted(softmax([dot(query, key) / math.sqrt(len(query)) for key in k]), v) for query in q
    ]


def nystroem(q: list[Vector], k: list[Vector], v: list[Vector], landmarks: int) -> list[Vector]:
    q_means, k_means = means_of_runs(q, landmarks), means_of_runs(k, landmarks)
    core = np.array([softmax([dot(a, b) / math.sqrt(len(a)) for b in k_means]) for a in q_means])
    inverse = core.T / (
        max(sum(abs(core[:, j])) for j in range(landmarks))
        * max(sum(abs(core[i])) for i in range(landmarks))
    )
    one = np.eye(landmarks)
    for _ in range(6):
        inverse = (
            0.25
            * inverse
            @ (13 * one - core @ inverse @ (15 * one - core @ inverse @ (7 * one - core @ inverse)))
        )
    return attend(q, k_means, (inverse @ np.array(attend(q_means, k, v))).tolist())


def means_of_runs(rows: list[Vector], count: int) -> list[Vector]:
    means, start = [], 0
    for number in range(count):
        length = len(rows) // count + (number < len(rows) % count)
        means.append(weighted([1 / length] * length, rows[start : start + length]))
        start += length
    return means


class TestNystroem:
    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_with_a_landmark_for_each_token_it_is_softmax_attention(self) -> None:
        q, k, v = self.random(3, 1, 2, 7, 4)
        exact = torch.softmax(q @ k.mT / 2, dim=-1) @ v
        for landmarks in (7, 8, 100):
            assert torch.allclose(nystroem_attention(q, k, v, landmarks), exact, atol=1e-12)

    def test_landmarks_that_stand_for_equal_tokens_lose_nothing(self) -> None:
        """The formula itself, short of the inverse's six steps: each of 5 tokens stands there 3
        times, and has a landmark.
        """
        unit = torch.eye(5, dtype=torch.float64) * 3
        q, k, v = (
            rows.repeat_interleave(3, dim=0)[None, None]
            for rows in (unit + self.random(5, 5) / 10, unit, self.random(5, 5))
        )
        assert torch.allclose(
            nystroem_attention(q, k, v, 5), torch.softmax(q @ k.mT / 5**0.5, dim=-1) @ v, atol=1e-4
        )

    def test_runs_differ_by_one_and_the_longer_come_first(self) -> None:
        rows = torch.tensor([1.0, 2.0, 6.0, 4.0, 9.0, 7.0, 5.0, 3.0])[:, None]
        assert segment_means(rows, 3).squeeze(1).tolist() == [3.0, pytest.approx(20 / 3), 4.0]
        assert segment_means(rows, 4).squeeze(1).tolist() == [1.5, 5.0, 8.0, 4.0]

    def test_the_inverse_comes_nearer_with_each_step(self) -> None:
        matrix = torch.softmax(self.random(2, 6, 6), dim=-1)
        exact = torch.linalg.pinv(matrix)
        errors = [
            (pseudo_inverse(matrix, iterations) - exact).abs().max().item()
            for iterations in (2, 4, 6, 7, 8, 20)
        ]
        assert (
            all(before > after for before, after in pairwise(errors)) and errors[-1] < 1e-12
        )  # from nine on rounding decides

    def test_nothing_grows_with_the_square_of_the_tiles(self) -> None:
        class Largest(TorchDispatchMode):
            numbers = 0

            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                output = func(*args, **(kwargs or {}))
                self.numbers = max(
                    [
                        self.numbers,
                        *(
                            leaf.numel()
                            for leaf in tree_leaves(output)
                            if isinstance(leaf, torch.Tensor)
                        ),
                    ]
                )
                return output

        head, rows = double("transmil"), features(1000)
        with Largest() as largest:
            output = head(rows)
            (output.slide_logit + output.tile_logits.sum()).backward()
        assert largest.numbers <= 8 * 8 * 1025  # parts x landmarks x tokens


def test_dropout_drops_its_share_of_the_features_in_training_alone() -> None:
    head, rows = make_head(2000, params.Head(kind="mean", dropout=0.4)), torch.ones(3, 2000)
    with torch.no_grad():
        head.classifier.weight.fill_(1.0)  # type: ignore[union-attr,operator]
        head.classifier.bias.zero_()  # type: ignore[union-attr,operator]
        torch.manual_seed(0)
        dropped = (
            head.train()(rows).tile_logits / 2000 * 0.6
        )  # what is left is scaled up by 1 / 0.6
        assert head.eval()(rows).tile_logits.tolist() == [2000.0] * 3
    assert ((dropped > 0.55) & (dropped < 0.65)).all() and len(set(dropped.tolist())) > 1


class TestTileLoss:
    ATTENTION = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2])
    LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0])

    def loss(self, kind: str, label: int, tiles: int = 5) -> float:
        output = HeadOutput(torch.tensor(7.0), self.LOGITS[:tiles], self.ATTENTION[:tiles])
        return make_head(6, section_of(kind)).tile_loss(output, label).item()

    @given(
        st.lists(
            st.tuples(st.floats(-8, 8), st.integers(1, 1000)),
            min_size=1,
            max_size=12,
            unique_by=lambda tile: tile[1],
        ),
        st.integers(0, 1),
    )
    def test_is_its_formula_in_float64(self, tiles: list[tuple[float, int]], label: int) -> None:
        logits, attention = zip(*tiles, strict=True)
        output = HeadOutput(
            torch.tensor(0.0),
            torch.tensor(logits, dtype=torch.float64),
            torch.tensor(attention, dtype=torch.float64),
        )

        def entropy(logit: float, target: int) -> float:
            return math.log1p(math.exp(-logit if target else logit))

        def svm(logit: float, target: int) -> float:
            scores = [0.0, logit]
            return math.log(
                sum(
                    math.exp(score + (j != target) - scores[target])
                    for j, score in enumerate(scores)
                )
            )

        order = sorted(range(len(tiles)), key=lambda tile: -attention[tile])
        most = order[: min(2, math.ceil(len(tiles) / 2))]
        least = [tile for tile in order[-2:] if tile not in most] if label else []
        taken = [(tile, label) for tile in most] + [(tile, 0) for tile in least]
        of_kind = {
            "max": entropy(max(logits), label),
            "inherit": sum(entropy(logit, label) for logit in logits) / len(tiles),
            "clam_sb": sum(svm(logits[tile], target) for tile, target in taken) / len(taken),
        }
        for kind, expected in of_kind.items():
            loss = make_head(6, section_of(kind)).tile_loss(output, label)
            assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("kind", ["dsmil", "abmil", "transmil", "mean", "max"])
    def test_of_most_kinds_is_that_of_the_highest_tile_logit(self, kind: str) -> None:
        assert self.loss(kind, 1) == pytest.approx(-math.log(sigmoid(2.0)), abs=1e-6)
        assert self.loss(kind, 0) == pytest.approx(-math.log(1 - sigmoid(2.0)), abs=1e-6)

    def test_of_inherit_is_the_mean_over_all_tiles(self) -> None:
        for label in (0, 1):
            expected = (
                sum(
                    -math.log(sigmoid(z) if label else 1 - sigmoid(z)) for z in self.LOGITS.tolist()
                )
                / 5
            )
            assert self.loss("inherit", label) == pytest.approx(expected, abs=1e-6)

    def test_of_clam_sb_is_the_smooth_svm_loss_of_the_most_and_the_least_attended_tiles(
        self,
    ) -> None:
        def svm(logit: float, target: int) -> float:
            """The smooth top-1 SVM loss of two classes, margin and temperature 1, of scores (0,
            logit).
            """
            scores = [0.0, logit]
            return math.log(
                sum(
                    math.exp(score + (j != target) - scores[target])
                    for j, score in enumerate(scores)
                )
            )

        assert self.loss("clam_sb", 1) == pytest.approx(
            (svm(1.5, 1) + svm(-1.0, 1) + svm(2.0, 0) + svm(0.5, 0)) / 4, abs=1e-6
        )
        assert self.loss("clam_sb", 0) == pytest.approx((svm(1.5, 0) + svm(-1.0, 0)) / 2, abs=1e-6)
        assert self.loss("clam_sb", 1, tiles=3) == pytest.approx(
            (svm(-1.0, 1) + svm(2.0, 1) + svm(0.5, 0)) / 3, abs=1e-6
        )  # none is both
        assert self.loss("clam_sb", 1, tiles=1) == pytest.approx(svm(2.0, 1), abs=1e-6)


class TestMined:
    """The logistic regression of the mined tiles, against scikit-learn's."""

    def test_each_penalty_is_solved(self) -> None:
        head, rows = (
            double("mined"),
            features(40) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0]) + 1,
        )
        assert isinstance(head, Mined)
        head.standardise(rows.mean(dim=0), rows.std(dim=0, unbiased=False))
        labels = (features(40, seed=4)[:, 0] + rows[:, 1] > 2.5).long()
        order = labels.argsort(stable=True)
        zeros = int((labels == 0).sum())
        slides = [rows[order[:zeros]], rows[order[zeros:][:3]], rows[:0], rows[order[zeros:][3:]]]
        assert 3 < zeros < 37 and 2 * zeros != 40
        for penalty, (loss, entropy) in zip(
            PENALTIES, head.solve(slides, [0, 1, 1, 1]), strict=True
        ):
            regression = LogisticRegression(
                C=1 / penalty / 40, class_weight="balanced", tol=1e-10, max_iter=10_000
            )
            regression.fit(((rows - head.mean) / head.scale).numpy(), labels.numpy())
            assert head.classifier.weight[0].tolist() == pytest.approx(
                regression.coef_[0].tolist(), abs=2e-3
            )
            assert head.classifier.bias.item() == pytest.approx(regression.intercept_[0], abs=2e-3)
            of_tiles = [
                math.log1p(math.exp((1 - 2 * t) * u))
                for t, u in zip(labels.tolist(), head(rows).tile_logits.tolist(), strict=True)
            ]
            by_role = [
                [value for value, t in zip(of_tiles, labels.tolist(), strict=True) if t == role]
                for role in (0, 1)
            ]
            assert entropy == pytest.approx(
                sum(sum(values) / len(values) / 2 for values in by_role)
            )
            assert loss == pytest.approx(
                entropy + penalty / 2 * float((regression.coef_**2).sum()), rel=1e-3
            )

    def test_a_heavier_penalty_gives_smaller_weights_and_a_higher_cross_entropy(self) -> None:
        head, entropies, norms = double("mined"), [], []
        assert isinstance(head, Mined)
        for _, entropy in head.solve([features(9), features(14, seed=5) + 0.5], [0, 1]):
            entropies.append(entropy)
            norms.append(head.classifier.weight.norm().item())
        assert entropies == sorted(entropies, reverse=True) and norms == sorted(norms)


class TestGradients:
    """Which weights a loss trains: nothing but what its formula holds."""

    @pytest.mark.parametrize(
        ("kind", "by_slide", "by_tiles"),
        [
            ("dsmil", {"query", "value", "slide_stream"}, {"tile_stream"}),
            (
                "abmil",
                {"hidden", "content", "gate", "weigh", "classifier"},
                {"hidden", "classifier"},
            ),
            (
                "clam_sb",
                {"hidden", "content", "gate", "weigh", "classifier"},
                {"hidden", "instance_classifier"},
            ),
            (
                "transmil",
                {"token", "class_token", "first", "positions", "second", "norm", "classifier"},
                None,
            ),
            ("mean", {"classifier"}, {"classifier"}),
            ("max", {"classifier"}, {"classifier"}),
            ("inherit", {"classifier"}, {"classifier"}),
            ("mined", {"classifier"}, {"classifier"}),
        ],
    )
    def test_of_the_slide_logit_and_the_tile_loss(
        self, kind: str, by_slide: set[str], by_tiles: set[str] | None
    ) -> None:
        assert self.reached(kind, lambda head, output: output.slide_logit) == by_slide
        assert self.reached(kind, lambda head, output: head.tile_loss(output, 1)) == (
            by_tiles or by_slide
        )

    @staticmethod
    def reached(kind: str, loss: Any) -> set[str]:
        head = double(kind)
        loss(head, head(features(6))).backward()
        return {
            name.split(".")[0]
            for name, weight in head.named_parameters()
            if weight.grad is not None and weight.grad.abs().max() > 0
        }

    @pytest.mark.parametrize(
        ("kind", "count"), [("mean", 6), ("max", 1), ("inherit", 3), ("mined", 3)]
    )
    def test_the_slide_logit_moves_the_attended_tiles_alone(self, kind: str, count: int) -> None:
        head, rows = double(kind), features(6).requires_grad_()
        output = head(rows)
        output.slide_logit.backward()
        moved = rows.grad.abs().sum(dim=1) > 0  # type: ignore[union-attr]
        assert moved.sum() == count and torch.equal(moved, output.attention > 0)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @pytest.mark.parametrize("tiles", [1, 2, 3, 9, 30])
    def test_attention_is_shares_that_sum_to_one(self, kind: str, tiles: int) -> None:
        output = make_head(6, section_of(kind)).eval()(features(tiles).float())
        assert output.tile_logits.shape == output.attention.shape == (tiles,)
        assert (output.attention >= 0).all() and output.attention.sum().item() == pytest.approx(
            1, abs=1e-6
        )
        assert all(torch.isfinite(part).all() for part in output)

    def test_a_slide_of_one_tile_attends_to_it(self, kind: str) -> None:
        output = double(kind)(features(1))
        assert output.attention.tolist() == [1.0]
        if kind in ("abmil", "mean", "max", "inherit", "mined"):
            assert output.slide_logit.item() == pytest.approx(output.tile_logits.item())

    def test_comes_back_from_its_files_bit_by_bit(self, kind: str, tmp_path: Path) -> None:
        section = section_of(kind)
        head = make_head(6, section).eval()
        head.standardise(torch.arange(6.0), torch.ones(6) * 2)
        save_head(head, section, tmp_path / "a")
        loaded = load_head(tmp_path / "a")
        save_head(loaded, section, tmp_path / "b")
        rows = features(11).float()
        assert type(loaded) is KINDS[kind]
        assert_same_weights(loaded, head)
        for one, other in zip(loaded(rows), head(rows), strict=True):
            assert_close(one, other)
        for name in ("head.json", "weights.safetensors"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_the_seed_draws_the_weights_and_leaves_the_global_generator_alone(
        self, kind: str
    ) -> None:
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        one, same, other = (
            make_head(6, section_of(kind).model_copy(update={"seed": seed})).state_dict()
            for seed in (1, 1, 2)
        )
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not any(
            torch.equal(one[name], other[name])
            for name in one
            if name.endswith("weight") and "norm" not in name
        )
        assert torch.equal(before, torch.random.get_rng_state())


ORDER = torch.tensor([3, 0, 6, 1, 5, 2, 4])


def assert_order_does_not_matter(head: Head, rows: torch.Tensor, order: torch.Tensor) -> None:
    straight, turned = head(rows), head(rows[order])
    assert turned.slide_logit.item() == pytest.approx(straight.slide_logit.item(), abs=1e-12)
    assert torch.allclose(turned.tile_logits, straight.tile_logits[order], atol=1e-12)
    assert torch.allclose(turned.attention, straight.attention[order], atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transmil"])
def test_a_head_does_not_depend_on_the_order_of_tiles(kind: str) -> None:
    assert_order_does_not_matter(double(kind), features(7), ORDER)


def test_transmil_depends_on_the_order_of_tiles_by_its_positions_and_neighbours_alone() -> None:
    """So it is while no token is filled in and none shares a landmark: 4 tiles, 8 landmarks."""
    head, rows, order = double("transmil"), features(4), torch.tensor([2, 0, 3, 1])
    assert abs(head(rows).slide_logit.item() - head(rows[order]).slide_logit.item()) > 1e-4
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if "neighbours" in name or "positions" in name:
                weight.zero_()
    assert_order_does_not_matter(head, rows, order)


def test_every_kind_of_params_can_be_made() -> None:
    assert set(KINDS) == set(get_args(params.Head.model_fields["kind"].annotation))


def test_a_missing_or_foreign_head_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        HeadError,
        match=(
            r"head\.json does not exist; bring it anew from where it was made, or, of this project,"
            r" give `hnm verify --remove`"
        ),
    ):
        load_head(tmp_path)
    section = section_of("dsmil")
    save_head(make_head(6, section), section, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(
        HeadError, match=r"weights\.safetensors is no safetensors file \(.*\); bring it anew"
    ):
        load_head(tmp_path)


def test_the_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_head(make_head(6, section_of("mean")), section_of("abmil"), tmp_path)
    with pytest.raises(
        HeadError,
        match=(
            r"the weights of .* do not fit: 8 tensors missing \[.content\.0\.bias., .*1 of another"
            r" shape, .*\[.classifier\.weight.\]; bring it anew"
        ),
    ):
        load_head(tmp_path)
