"""DSMIL: dual-stream multiple-instance learning (Li, Li and Eliceiri, CVPR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput


class DSMIL(Head):
    """A tile stream finds the critical tile; a slide stream attends to the tiles that resemble it.

    With features h_i, critical tile m = argmax_i w_0 h_i, queries q_i and values v_i = W_v h_i, the
    attention is a_i = softmax_i(q_i . q_m / sqrt(d)) and the slide logit w_b sum_i a_i v_i
    (equations 3 to 5; the queries are the published code's two layers). The tile logit is w_0 h_i.

    The two streams stay apart, as in the published training code: the slide logit is the slide
    stream's, and the tile loss trains the tile stream by its highest logit. The paper has a stream
    for each class; here it is that of label 1.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        width = section.attention_features
        self.tile_stream = nn.Linear(features, 1)
        self.query = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh()
        )
        self.value = nn.Linear(features, features)
        self.slide_stream = nn.Linear(features, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        return self.pool_each(features, [len(features)])[0]

    def pool_each(self, features: Tensor, counts: list[int]) -> list[HeadOutput]:
        """See `Head.pool_each`.

        As values and slide stream are linear, features are pooled first and then meet the product
        of w_b and W_v, which is computed once for all slides. The numbers are the same at a
        fraction of the cost: no slide needs a gradient of the many weights W_v to itself.
        """
        tile_logits = torch.split(self.tile_stream(features).squeeze(1), counts)
        attentions = [
            self.attend(queries, logits)
            for queries, logits in zip(
                torch.split(self.query(features), counts), tile_logits, strict=True
            )
        ]
        pooled = torch.stack(
            [
                attention @ slide
                for attention, slide in zip(attentions, torch.split(features, counts), strict=True)
            ]
        )
        weight = self.slide_stream.weight @ self.value.weight
        bias = self.slide_stream.weight @ self.value.bias + self.slide_stream.bias
        slide_logits = linear(pooled, weight, bias).squeeze(1)
        return [
            HeadOutput(*output)
            for output in zip(slide_logits.unbind(), tile_logits, attentions, strict=True)
        ]

    def attend(self, queries: Tensor, tile_logits: Tensor) -> Tensor:
        """Returns the attention `(tiles,)`: how much each query `(tiles, width)` resembles that of
        the tile with the highest logit.
        """
        critical = queries[tile_logits.argmax()]
        return torch.softmax(queries @ critical / queries.shape[1] ** 0.5, dim=0)
