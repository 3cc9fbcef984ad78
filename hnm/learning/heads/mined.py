"""Mined: a tile classifier that is trained on the mined tiles alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hnm.learning.heads.inherit import Inherit

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of the squared norm, from the smoothest classifier to one that may follow single
tiles.
"""


class Mined(Inherit):
    """The linear tile classifier of `inherit`, solved on the tiles that were mined for its round:
    positives against hard negatives.

    With features h_i, the tile logit is w h_i + b and the slide logit the mean of the `head.top_k`
    highest of them. The classifier is the logistic regression of the roles, which weigh half each
    however many tiles they have; of the regressions for `PENALTIES` validation chooses one. No
    other loss, rate, schedule or dropout plays a part, and no draw. What of the mined tiles is hard
    and what random is the mining policy's (`mining.policy: mixed`). Where nothing was mined, as in
    round 0, all tiles of the train slides teach with the label of their slide. Positives of slide
    labels are not all positive, and the slide logit is a mean of the highest: it leans to positive,
    so that only comparisons and thresholds chosen on validation are meaningful.
    """

    def solve(
        self, slides: Sequence[Tensor], labels: Sequence[int]
    ) -> Iterator[tuple[float, float]]:
        """Sets the classifier to the minimum of `mean_r mean_{i in r} CE(w h_i + b, r) + penalty /
        2 |w|^2` for each penalty in turn.

        Each starts from the one before, by L-BFGS. The standardisation is put into the weights, so
        that features are not copied.

        Args:
            slides: the `(tiles, features)` of each slide that teach, as the encoder gave them; of
            some slides none. labels: 0 or 1 of each slide; both have tiles.

        Yields:
            The minimum, and the cross-entropy in it.
        """
        targets = torch.cat(
            [
                slide.new_full((len(slide),), label)
                for slide, label in zip(slides, labels, strict=True)
            ]
        )
        weights = torch.where(targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())

        def cross_entropy() -> Tensor:
            weight = self.classifier.weight / self.scale
            logits = torch.cat([slide @ weight.squeeze(0) for slide in slides]) + (
                self.classifier.bias - weight @ self.mean
            )
            return binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")

        torch.nn.init.zeros_(self.classifier.weight)
        torch.nn.init.zeros_(self.classifier.bias)
        for penalty in PENALTIES:
            optimiser = torch.optim.LBFGS(
                self.classifier.parameters(),
                max_iter=300,
                history_size=20,
                tolerance_grad=1e-5,
                line_search_fn="strong_wolfe",
            )

            def minimum(
                optimiser: torch.optim.LBFGS = optimiser, penalty: float = penalty
            ) -> Tensor:
                optimiser.zero_grad(set_to_none=True)
                loss = cross_entropy() + penalty / 2 * self.classifier.weight.square().sum()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimiser.step(minimum)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                own = cross_entropy()
                yield (own + penalty / 2 * self.classifier.weight.square().sum()).item(), own.item()
