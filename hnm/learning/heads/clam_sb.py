"""CLAM-SB: clustering-constrained attention, single branch (Lu et al., Nature Biomedical
Engineering 2021).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hnm import params
from hnm.learning.heads.abmil import ABMIL
from hnm.learning.heads.head import HeadOutput


class CLAMSB(ABMIL):
    """Gated attention, and a tile classifier that must tell the most from the least attended tiles.

    Hidden features h_i, attention a_i and slide logit c(sum_i a_i h_i) are ABMIL's. The published
    small network has `head.attention_features` 256. The tile logit is u_i = w h_i + b of the
    instance classifier; it is the difference of the two outputs of the published one.

    The published network has an instance classifier for each class. This one has that of the
    positive class, with both of its terms. On a positive slide the `head.instance_tiles` most
    attended tiles are positives and as many least attended tiles negatives; on a negative slide the
    most attended tiles are negatives. The instance classifier of the negative class is left out: a
    negative slide has no tiles that make it negative, and its logits would be no scores of tiles.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        self.instance_tiles = section.instance_tiles
        self.instance_classifier = nn.Linear(self.classifier.in_features, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        hidden, attention = self.attend(features)
        slide_logit = self.classifier(attention @ hidden).squeeze(0)
        return HeadOutput(slide_logit, self.instance_classifier(hidden).squeeze(1), attention)

    def tile_loss(self, output: HeadOutput, label: int) -> Tensor:
        """Returns the instance loss `()`: the mean of the paper's smooth top-1 SVM loss, log(1 +
        exp(1 - t u)) for tile logit u and target t = ±1.

        That is tau log(sum_j exp((s_j + alpha [j != target] - s_target) / tau)) for two classes
        with the paper's margin alpha = 1 and temperature tau = 1. Where a slide has fewer than
        twice `head.instance_tiles` tiles, none of them is taken as both.
        """
        order = output.attention.argsort(descending=True, stable=True)
        tiles = len(order)
        most = order[: min(self.instance_tiles, (tiles + 1) // 2)]
        least = order[tiles - min(self.instance_tiles, tiles // 2) :]
        logits = output.tile_logits
        if label == 0:
            return softplus(1 + logits[most]).mean()
        return softplus(1 - torch.cat([logits[most], -logits[least]])).mean()
