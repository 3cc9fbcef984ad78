"""The base of heads whose tile logits are linear in the features."""

from torch import Tensor, nn

from hnm import params
from hnm.learning.heads.head import Head


class LinearHead(Head):
    """A head with the tile logit w h_i + b of features h_i."""

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        self.classifier = nn.Linear(features, 1)

    def tile_logits(self, features: Tensor) -> Tensor:
        """Returns the tile logits `(tiles,)` of standardised features `(tiles, features)`."""
        logits: Tensor = self.classifier(features).squeeze(1)
        return logits
