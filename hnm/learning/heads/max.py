"""Max pooling: a slide is as positive as its surest tile."""

from torch import Tensor, nn
from torch.nn.functional import one_hot

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput


class Max(Head):
    """The highest tile logit is the slide's (the max pooling of Ilse, Tomczak and Welling, ICML
    2018, linear).

    With features h_i, the tile logit is w h_i + b, the attention 1 on the tile m = argmax_i (w h_i
    + b) (the first of equal ones) and 0 elsewhere, and the slide logit w h_m + b. The slide loss
    and the tile loss are the same number.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        self.classifier = nn.Linear(features, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tile_logits = self.classifier(features).squeeze(1)
        surest = tile_logits.argmax()
        return HeadOutput(
            tile_logits[surest], tile_logits, one_hot(surest, len(tile_logits)).to(tile_logits)
        )
