"""ABMIL: attention-based multiple-instance learning, gated (Ilse, Tomczak and Welling, ICML
2018).
"""

import torch
from torch import Tensor, nn

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput


class ABMIL(Head):
    """A slide is the attention-weighted mean of its tiles.

    Features x_i become h_i = relu(W x_i + b), the last layer of the paper's transformation, twice
    as wide as the gate (`head.attention_features`). The attention is a_i = softmax_i(w^T (tanh(V
    h_i) * sigmoid(U h_i))) (equation 9, with the published code's biases). The slide logit is
    c(sum_i a_i h_i), where c is linear, and the tile logit is c(h_i). So the slide logit is the
    attention-weighted mean of the tile logits. The paper trains the slide logit alone:
    `head.tile_weight` and `ranking.weight` are 0 there.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        gate = section.attention_features
        hidden = 2 * gate
        self.hidden = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.content = nn.Sequential(nn.Linear(hidden, gate), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(hidden, gate), nn.Sigmoid())
        self.weigh = nn.Linear(gate, 1)
        self.classifier = nn.Linear(hidden, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        hidden, attention = self.attend(features)
        tile_logits = self.classifier(hidden).squeeze(1)
        return HeadOutput(attention @ tile_logits, tile_logits, attention)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the hidden features `(tiles, hidden)` and the attention `(tiles,)` of a slide."""
        hidden = self.hidden(features)
        return hidden, torch.softmax(
            self.weigh(self.content(hidden) * self.gate(hidden)).squeeze(1), dim=0
        )
