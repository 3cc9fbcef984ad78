"""Max pooling: the slide logit is the highest tile logit."""

from torch import Tensor
from torch.nn.functional import one_hot

from hnm.learning.heads.head import HeadOutput
from hnm.learning.heads.linear import LinearHead


class Max(LinearHead):
    """The slide logit is the highest tile logit (the max pooling of Ilse, Tomczak and Welling, ICML
    2018, on a linear classifier).

    With features h_i, the tile logit is w h_i + b. The attention is 1 on the tile m = argmax_i (w
    h_i + b), the first of equal ones, and 0 elsewhere, and the slide logit is w h_m + b. Slide loss
    and tile loss are the same number.
    """

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tile_logits = self.tile_logits(features)
        highest = tile_logits.argmax()
        attention = one_hot(highest, len(tile_logits)).to(tile_logits)
        return HeadOutput(tile_logits[highest], tile_logits, attention)
