"""DSMIL: dual-stream multiple-instance learning (Li, Li and Eliceiri, CVPR 2021)."""

import torch
from torch import Tensor, nn

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput


class DSMIL(Head):
    """A tile stream that finds the critical tile, and a slide stream that attends to the tiles that resemble it.

    With features h_i, critical tile m = argmax_i w_0 h_i, queries q_i and values v_i = W_v h_i, the attention is
    a_i = softmax_i(q_i . q_m / sqrt(d)) and the slide logit w_b sum_i a_i v_i (equations 3 to 5; the queries are the
    published code's two layers). As the values are linear, the features are pooled first and projected once:
    the same numbers at a fraction of the cost. The two streams stay apart, as in the published training code: the
    slide logit is the slide stream's, and the tile loss trains the tile stream by its highest logit.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        width = section.attention_features
        self.tile_stream = nn.Linear(features, 1)
        self.query = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
        self.value = nn.Linear(features, features)
        self.slide_stream = nn.Linear(features, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tile_logits = self.tile_stream(features).squeeze(1)
        queries = self.query(features)
        critical = queries[tile_logits.argmax()]
        attention = torch.softmax(queries @ critical / queries.shape[1] ** 0.5, dim=0)
        slide_logit = self.slide_stream(self.value(attention @ features)).squeeze(0)
        return HeadOutput(slide_logit, tile_logits, attention)
