"""An epoch of DSMIL in `hnm` beside the plain loop of the paper: the same numbers, and how much
sooner.

    python benchmarks/head_epoch.py --threads 1

Both train the same head by the same losses on the same synthetic slides in the same order. The
plain loop follows the paper's equations as they stand: every tile's value is computed, then the
values are pooled by attention; it reads a slide's features from its file at every step. `hnm` pools
the features first and projects once, and holds the features in memory. The plain loop with features
in memory stands between the two, so that each of the two can be told apart.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hnm import params
from hnm.learning import features as feature_files
from hnm.learning.heads import make_head
from hnm.learning.training.fit_head import LabelledSlide, fit_head, steps_of

RANKING = params.Ranking()


class PlainDSMIL(nn.Module):
    """Equations 3 to 5 of Li, Li and Eliceiri (CVPR 2021), tile by tile: scores, queries, values,
    attention, pooled values.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(tensor.clone())
                for name, tensor in weights.items()
            }
        )

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Slide logit and tile logits `(tiles,)` of standardised features `(tiles, features)`."""
        tile_logits = self.linear("tile_stream", tiles)[:, 0]
        queries = torch.tanh(self.linear("query_2", torch.relu(self.linear("query_0", tiles))))
        values = self.linear("value", tiles)
        critical = int(torch.argmax(tile_logits))
        attention = torch.softmax(queries @ queries[critical] / queries.shape[1] ** 0.5, dim=0)
        return self.linear("slide_stream", (attention @ values)[None])[0, 0], tile_logits

    def linear(self, name: str, x: Tensor) -> Tensor:
        outputs: Tensor = x @ self.weights[f"{name}_weight"].T + self.weights[f"{name}_bias"]
        return outputs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    slides = synthetic(arguments.slides, arguments.tiles, arguments.features)
    section = params.Head(epochs=arguments.epochs, patience=arguments.epochs, dropout=0.0)
    ours, our_losses = timed_hnm(slides, section)
    in_memory, losses = timed_plain(slides, section, lambda slide: slide.features)
    with tempfile.TemporaryDirectory() as folder:
        for slide in slides:
            tiles = slide.features.numpy()
            feature_files.write(
                tiles, np.zeros((len(tiles), 2), np.int64), Path(folder) / slide.slide_id
            )
        from_files, _ = timed_plain(
            slides,
            section,
            lambda slide: torch.from_numpy(feature_files.read(Path(folder) / slide.slide_id)),
        )
    apart = max(abs(a - b) for a, b in zip(our_losses, losses, strict=True))
    print(
        f"{arguments.slides} slides of {arguments.tiles} tiles of {arguments.features} features,"
        f" {arguments.threads} threads, median of {len(ours)} epochs\n"
    )
    print("| loop | seconds an epoch | times hnm's |\n|---|---|---|")
    for name, seconds in (
        ("plain, features from files", from_files),
        ("plain, features in memory", in_memory),
        ("hnm", ours),
    ):
        print(
            f"| {name} | {statistics.median(seconds):.2f} |"
            f" {statistics.median(seconds) / statistics.median(ours):.1f} |"
        )
    print(
        f"\nLosses of the epochs: {', '.join(f'{loss:.5f}' for loss in our_losses)}; plain and hnm"
        f" differ by {apart:.1e} at most."
    )


def synthetic(slides: int, tiles: int, features: int) -> list[LabelledSlide]:
    """Slides of normal noise, standardised together; some tiles of every other slide are
    shifted.
    """
    generator = torch.Generator().manual_seed(0)
    slides_rows = []
    for number in range(slides):
        rows = torch.randn(tiles, features, generator=generator)
        if number % 2:
            rows[: tiles // 20, : features // 10] += 0.5
        slides_rows.append(rows)
    everything = torch.cat(slides_rows)
    mean, deviation = everything.mean(dim=0), everything.std(dim=0, unbiased=False)
    return [
        LabelledSlide(f"s{number:04}", (rows - mean) / deviation, number % 2)
        for number, rows in enumerate(slides_rows)
    ]


def timed_hnm(slides: list[LabelledSlide], section: params.Head) -> tuple[list[float], list[float]]:
    """Seconds and loss of each epoch; the validation slides are two short ones."""
    ends = [time.perf_counter()]
    validation = [
        LabelledSlide(slide.slide_id, slide.features[:10], slide.label) for slide in slides[:2]
    ]
    _, history = fit_head(
        slides,
        validation,
        section,
        RANKING,
        lambda epoch, metrics: ends.append(time.perf_counter()),
    )
    return [after - before for before, after in itertools.pairwise(ends)], [
        row["loss"] for row in history
    ]


def timed_plain(
    slides: list[LabelledSlide], section: params.Head, features: Callable[[LabelledSlide], Tensor]
) -> tuple[list[float], list[float]]:
    """Seconds and loss of each epoch of the plain loop, which gets a slide's features by `features`
    at every step.
    """
    weights = make_head(slides[0].features.shape[1], section).state_dict()
    model = PlainDSMIL(
        {name: tensor for name, tensor in weights.items() if name not in ("mean", "scale")}
    )
    optimiser = torch.optim.Adam(
        model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, section.epochs)
    seconds, means = [], []
    for epoch in range(1, section.epochs + 1):
        start, losses = time.perf_counter(), []
        for positive, negative in steps_of(slides, section.seed, epoch):
            optimiser.zero_grad()
            loss = plain_loss(model(features(positive)), model(features(negative)), section)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        scheduler.step()
        seconds.append(time.perf_counter() - start)
        means.append(statistics.mean(losses))
    return seconds, means


def plain_loss(
    positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor], section: params.Head
) -> Tensor:
    """Cross-entropies of slide logit and highest tile logit, and the patch ranking loss on scores
    (Huang et al., MICCAI 2024).
    """

    def entropies(output: tuple[Tensor, Tensor], sign: int) -> Tensor:
        slide_logit, tile_logits = output
        return section.slide_weight * torch.log1p(
            torch.exp(-sign * slide_logit)
        ) + section.tile_weight * torch.log1p(torch.exp(-sign * tile_logits.max()))

    def surest(tile_logits: Tensor) -> Tensor:
        return torch.sigmoid(
            torch.sort(tile_logits, descending=True).values[: RANKING.top_k]
        ).mean()

    rank = torch.clamp(RANKING.margin - surest(positive[1]) + surest(negative[1]), min=0)
    return (entropies(positive, 1) + entropies(negative, -1)) / 2 + RANKING.weight * rank


if __name__ == "__main__":
    main()
