"""Mined: a tile classifier that learns from the mined tiles alone."""

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
    """The linear tile classifier of `Inherit`, solved on the tiles that were mined for its round:
    positives against hard negatives.

    With features h_i, the tile logit is w h_i + b and the slide logit the mean of the `head.top_k`
    highest tile logits. The classifier is the logistic regression of the roles; each role weighs
    half, however many tiles it has. Validation chooses among the regressions for `PENALTIES`. There
    is no other loss, and no learning rate, schedule, dropout or random draw.

    Where nothing was mined, as in round 0, all tiles of the train slides are learnt with the label
    of their slide. The tiles of a positive slide are not all positive, and the slide logit is a
    mean of the highest. So it leans to positive, and only comparisons and thresholds that
    validation chose are meaningful.
    """

    def solve(
        self, slides: Sequence[Tensor], labels: Sequence[int]
    ) -> Iterator[tuple[float, float]]:
        """Sets the classifier to the minimum of `mean_r mean_{i in r} CE(w h_i + b, r) + penalty /
        2 |w|^2` over roles r, for each penalty in turn.

        Each minimum starts from the one before and is found by L-BFGS. The standardisation is put
        into the weights, so that features are not copied.

        Args:
            slides: the features `(tiles, features)` of each slide to learn from, as the encoder
                gave them. Some slides may have no tile.
            labels: 0 or 1 of each slide. Both labels have tiles.

        Yields:
            The minimum, and the cross-entropy in it.
        """
        targets = torch.cat(
            [
                tiles.new_full((len(tiles),), label)
                for tiles, label in zip(slides, labels, strict=True)
            ]
        )
        weights = torch.where(targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())

        def losses(penalty: float) -> tuple[Tensor, Tensor]:
            """Returns the loss that is minimised, and the cross-entropy in it."""
            weight = self.classifier.weight / self.scale
            logits = torch.cat([tiles @ weight.squeeze(0) for tiles in slides]) + (
                self.classifier.bias - weight @ self.mean
            )
            entropy = binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
            return entropy + penalty / 2 * self.classifier.weight.square().sum(), entropy

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

            def gradients(penalty: float = penalty) -> Tensor:
                self.classifier.zero_grad(set_to_none=True)
                loss, _ = losses(penalty)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimiser.step(gradients)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                loss, entropy = losses(penalty)
                yield loss.item(), entropy.item()
