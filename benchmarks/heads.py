"""Ten-fold accuracy of each head on the classic sets of multiple-instance learning, beside the
literature's figures.

    python benchmarks/heads.py musk1.npz musk2.npz elephant.npz fox.npz tiger.npz --out heads.md

A set is an npz file with `X` (instances, features), `bag` (instances,) the bag of each instance,
`bag_ids` (bags,) and `bag_label` (bags,) 0 or 1. A bag stands for a slide, an instance for a tile.

In each repeat the bags are dealt anew into ten stratified folds. Each fold is tested once, by a
head trained on eight others whose epoch the ninth has chosen; a bag is called positive when its
slide logit is above 0. Nothing is chosen on the tested fold, neither epoch nor threshold nor
setting: `SETTINGS` were written down before the first run.

With `--peek` epoch and threshold of each fold are those that are best on the tested fold itself, of
heads trained on the nine others, as in the published DSMIL code: no estimate of anything, but what
its figures can be compared with.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from hnm import params
from hnm.files import whole
from hnm.learning.heads import KINDS, Head
from hnm.learning.training.fit_head import LabelledSlide, fit_head
from hnm.seeds import seed_of

FOLDS = 10

SETTINGS = {
    "dsmil": {"learning_rate": 2e-4, "slide_weight": 0.5, "tile_weight": 0.5},
    "abmil": {"learning_rate": 5e-4, "slide_weight": 1.0, "tile_weight": 0.0},
    "transmil": {"learning_rate": 2e-4, "slide_weight": 1.0, "tile_weight": 0.0},
    "clam_sb": {"learning_rate": 2e-4, "slide_weight": 0.7, "tile_weight": 0.3},
    "mean": {"learning_rate": 1e-2, "slide_weight": 1.0, "tile_weight": 0.0},
    "max": {"learning_rate": 1e-2, "slide_weight": 1.0, "tile_weight": 0.0},
    "inherit": {"learning_rate": 1e-2, "slide_weight": 0.5, "tile_weight": 0.5},
    "mined": {},
}
"""The losses' weights as each paper has them (inherit has none), without the ranking loss; a linear
head takes larger steps. `mined` learns from all instances."""

LITERATURE = {
    "musk1": {"dsmil": "0.932 ± 0.023", "abmil": "0.900 ± 0.050"},
    "musk2": {"dsmil": "0.930 ± 0.020", "abmil": "0.863 ± 0.042"},
    "fox": {"dsmil": "0.729 ± 0.018", "abmil": "0.603 ± 0.029"},
    "tiger": {"dsmil": "0.869 ± 0.008", "abmil": "0.845 ± 0.018"},
    "elephant": {"dsmil": "0.925 ± 0.007", "abmil": "0.857 ± 0.027"},
}
"""DSMIL: Li et al., CVPR 2021. Gated attention: Ilse et al., ICML 2018. The others report none of
these sets. Written down from memory: no copy of either table was at hand to check them against, so
look before you cite."""

NOTE = """\
Mean ± standard deviation over the repeats of the accuracy over all bags, each tested once a
repeat; in brackets what the head's own paper reports, from memory and unchecked.
The published DSMIL code keeps, for each fold, the epoch and the threshold that are best on the
tested fold itself, which raises its figures; with --peek so does this table, else neither sees
the tested fold.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path, nargs="+", help="npz files")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peek",
        action="store_true",
        help="choose epoch and threshold on the tested fold, as the published DSMIL code does",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[tuple[str, str], list[float]] = {}
    for path in arguments.sets:
        bags = read_bags(path)
        for kind in arguments.kinds:
            repeats = [
                accuracy(bags, kind, arguments.epochs, seed, peek=arguments.peek)
                for seed in range(arguments.repeats)
            ]
            results[kind, path.stem] = repeats
            print(f"{path.stem} {kind} {cell(repeats)}", file=sys.stderr, flush=True)
    text = (
        f"{table(results)}\n{NOTE}\n{arguments.epochs} epochs, {arguments.repeats}"
        f" repeats{', --peek' if arguments.peek else ''}.\n"
    )
    if arguments.out:
        with whole(arguments.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        print(text)


def read_bags(path: Path) -> list[LabelledSlide]:
    """The bags of a set, in the order of their ids."""
    with np.load(path, allow_pickle=False) as file:
        features, owner = torch.from_numpy(file["X"].astype(np.float32)), file["bag"]
        return [
            LabelledSlide(str(bag), features[torch.from_numpy(owner == bag)], int(label))
            for bag, label in sorted(
                zip(file["bag_ids"].tolist(), file["bag_label"].tolist(), strict=True)
            )
        ]


def accuracy(
    bags: Sequence[LabelledSlide], kind: str, epochs: int, seed: int, *, peek: bool
) -> float:
    """Share of the bags that heads which were not trained on them call by their label."""
    section = params.Head.model_validate(
        {"kind": kind, "epochs": epochs, "patience": epochs, "seed": seed, **SETTINGS[kind]}
    )
    right = 0
    for train, validation, test in folds(bags, seed):
        seen = ([*train, *validation], test) if peek else (train, validation)
        head, _ = fit_head(*seen, section, params.Ranking(weight=0.0), lambda epoch, metrics: None)
        logits, labels = logits_of(head, test), np.array([bag.label for bag in test])
        cuts = np.append(logits, np.inf) if peek else [np.nextafter(0.0, 1.0)]
        right += max(int(((logits >= cut) == labels).sum()) for cut in cuts)
    return right / len(bags)


def folds(
    bags: Sequence[LabelledSlide], seed: int
) -> Iterator[tuple[list[LabelledSlide], list[LabelledSlide], list[LabelledSlide]]]:
    """Train, validation and test bags of each of the ten ways."""
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed_of(seed, "folds") % 2**32)
    parts = [held for _, held in splitter.split(np.zeros(len(bags)), [bag.label for bag in bags])]
    for number in range(FOLDS):
        order = [parts[(number + step) % FOLDS] for step in range(FOLDS)]
        test, validation, train = (
            [bags[i] for i in sorted(np.concatenate(group))]
            for group in (order[:1], order[1:2], order[2:])
        )
        yield train, validation, test


@torch.inference_mode()
def logits_of(head: Head, bags: Sequence[LabelledSlide]) -> NDArray[np.float64]:
    return np.array([float(head(bag.features).slide_logit) for bag in bags])


def table(results: dict[tuple[str, str], list[float]]) -> str:
    kinds, sets = (list(dict.fromkeys(key[i] for key in results)) for i in (0, 1))
    lines = [f"| head | {' | '.join(sets)} |", f"|---|{'---|' * len(sets)}"]
    for kind in kinds:
        figures = [LITERATURE.get(name.lower(), {}).get(kind) for name in sets]
        cells = [
            cell(results[kind, name]) + (f" ({figure})" if figure else "")
            for name, figure in zip(sets, figures, strict=True)
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(repeats: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(repeats):.3f}" if len(repeats) > 1 else ""
    return f"{statistics.mean(repeats):.3f}{spread}"


if __name__ == "__main__":
    main()
