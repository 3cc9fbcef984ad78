"""Mean pooling: the slide logit is the mean tile logit."""

import torch
from torch import Tensor

from hnm.learning.heads.head import HeadOutput
from hnm.learning.heads.linear import LinearHead


class Mean(LinearHead):
    """Every tile counts the same (the mean pooling of Ilse, Tomczak and Welling, ICML 2018, on a
    linear classifier).

    With features h_i of N tiles, the tile logit is w h_i + b, the attention 1/N, and the slide
    logit 1/N sum_i (w h_i + b) = w mean(h) + b: pooling features or logits is the same.
    """

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tile_logits = self.tile_logits(features)
        attention = torch.full_like(tile_logits, 1 / len(tile_logits))
        return HeadOutput(tile_logits.mean(), tile_logits, attention)
