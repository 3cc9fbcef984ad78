"""Inherit: each tile is trained with the label of its slide."""

import torch
from torch import Tensor

from hnm import params
from hnm.learning.heads.head import HeadOutput, label_loss
from hnm.learning.heads.linear import LinearHead


class Inherit(LinearHead):
    """A linear tile classifier that gives each tile the label of its slide: the plain baseline of
    weak labels.

    With features h_i, the tile logit is w h_i + b and the slide logit the mean of the `head.top_k`
    highest tile logits. The attention is uniform on those tiles. The tile loss is the mean
    cross-entropy of all tiles with the label of their slide, so that a slide counts the same
    whatever its number of tiles. Steps balance the classes, as each has one positive and one
    negative slide, and `head.weight_decay` keeps the weights small. With `head.slide_weight` and
    `ranking.weight` 0 this is a regularised logistic regression of tiles. Its slide logits lean to
    positive then, as the highest of many tile logits is high on any slide; the slide loss corrects
    that.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        self.top_k = section.top_k

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tile_logits = self.tile_logits(features)
        top = tile_logits.topk(min(self.top_k, len(tile_logits)))
        attention = torch.zeros_like(tile_logits).index_fill(0, top.indices, 1 / len(top.indices))
        return HeadOutput(top.values.mean(), tile_logits, attention)

    def tile_loss(self, output: HeadOutput, label: int) -> Tensor:
        """Returns the mean cross-entropy of all tiles with the label of their slide."""
        return label_loss(output.tile_logits, label)
