"""DSMIL: dual-stream multiple-instance learning (Li, Li and Eliceiri, CVPR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput


class DSMIL(Head):
    """A tile stream that finds the critical tile, and a slide stream that attends to the tiles that
    resemble it.

    With features h_i, critical tile m = argmax_i w_0 h_i, queries q_i and values v_i = W_v h_i, the
    attention is a_i = softmax_i(q_i . q_m / sqrt(d)) and the slide logit w_b sum_i a_i v_i
    (equations 3 to 5; the queries are the published code's two layers). As the values are linear,
    the features are pooled first and meet the product of w_b and W_v, which the slides of a step
    share: the same numbers at a fraction of the cost. The two streams stay apart, as in the
    published training code: the slide logit is the slide stream's, and the tile loss trains the
    tile stream by its highest logit.

    Of more than two classes each has its own tile logits, critical tile, attention and pooled
    value, and the slide logit of each is linear in the values of all (the published code's
    convolution); queries and values are shared.
    """

    def __init__(self, features: int, section: params.Head, classes: int = 2) -> None:
        super().__init__(features, section)
        self.classes = classes
        width, streams = section.attention_features, len(self.labels)
        self.tile_stream = nn.Linear(features, streams)
        self.query = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh()
        )
        self.value = nn.Linear(features, features)
        self.slide_stream = nn.Linear(streams * features, streams)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        return self.pool_each(features, [len(features)])[0]

    def pool_each(self, features: Tensor, counts: list[int]) -> list[HeadOutput]:
        """See `Head.pool_each`.

        Values and slide stream are linear, so that their product is taken first and once, and
        pooled features go through it: no slide needs a gradient of the values' many weights to
        itself.
        """
        slides, streams = torch.split(features, counts), len(self.labels)
        tile_logits, queries = (
            torch.split(self.tile_stream(features), counts),
            torch.split(self.query(features), counts),
        )
        attentions = [
            torch.stack([self.attend(q, own) for own in logits.unbind(dim=1)], dim=1)
            for q, logits in zip(queries, tile_logits, strict=True)
        ]
        pooled = torch.stack(
            [
                (attention.T @ own).flatten()
                for attention, own in zip(attentions, slides, strict=True)
            ]
        )
        of_value = self.slide_stream.weight.view(streams * streams, -1)
        weight = (of_value @ self.value.weight).view(streams, -1)
        bias = (of_value @ self.value.bias).view(streams, streams).sum(
            dim=1
        ) + self.slide_stream.bias
        outputs = zip(linear(pooled, weight, bias), tile_logits, attentions, strict=True)
        if self.classes == 2:
            return [
                HeadOutput(logits.squeeze(0), of_tiles.squeeze(1), attention.squeeze(1))
                for logits, of_tiles, attention in outputs
            ]
        return [HeadOutput(*output) for output in outputs]

    def attend(self, queries: Tensor, tile_logits: Tensor) -> Tensor:
        """The attention `(tiles,)` of one stream: how much each query `(tiles, width)` resembles
        that of the highest tile logit.
        """
        critical = queries[tile_logits.argmax()]
        return torch.softmax(queries @ critical / queries.shape[1] ** 0.5, dim=0)
