"""TransMIL: a transformer over the tiles of a slide (Shao et al., NeurIPS 2021)."""

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from hnm import params
from hnm.learning.heads.head import Head, HeadOutput

PARTS = 8
"""Attention heads of a layer, as published; `params.Head` refuses widths that 8 does not divide."""


class TransMIL(Head):
    """A class token gathers from the tiles, and the tiles from each other, in two layers of
    self-attention.

    Features x_i become tokens relu(W x_i + b) of width d = `head.attention_features` (published:
    512). They are filled up to the next square number with the first ones again, behind a learnt
    class token. Then comes z + attention(LayerNorm(z)), then `Positions`, then z +
    attention(LayerNorm(z)) once more (algorithm 2). The slide logit is w LayerNorm(z) + b of the
    class token. The tile logit is the same of the token of the tile, so it depends on the other
    tiles of the slide. The attention is that of the class token to the tiles in the second layer,
    computed exactly, the mean over the 8 parts.

    The paper's dropout of 0.1 is `head.dropout`. The paper trains the slide logit alone:
    `head.tile_weight` and `ranking.weight` are 0 there.

    The tiles lie in the square in the order of the slide's pack, as published, and not at their
    places on the slide. So this head, unlike all others, depends on the order of the tiles.
    """

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__(features, section)
        width = section.attention_features
        self.token = nn.Linear(features, width)
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.first = Layer(width)
        self.positions = Positions(width)
        self.second = Layer(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 1)

    def pool(self, features: Tensor) -> HeadOutput:
        """See `Head.pool`."""
        tiles = len(features)
        side = isqrt(tiles - 1) + 1
        tokens = relu(self.token(features))
        tokens = torch.cat([self.class_token, tokens, tokens[: side**2 - tiles]])
        tokens, _ = self.first(tokens, tiles)
        tokens, attention = self.second(self.positions(tokens), tiles)
        logits = self.classifier(self.norm(tokens[: 1 + tiles])).squeeze(1)
        return HeadOutput(logits[0], logits[1:], attention)


class Layer(nn.Module):
    """z + attention(LayerNorm(z)), as published: with 8 parts, d/2 landmarks and a convolution of
    the values along the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.landmarks = width // 2
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.neighbours = nn.Conv2d(
            PARTS, PARTS, (33, 1), padding=(16, 0), groups=PARTS, bias=False
        )
        self.join = nn.Linear(width, width)

    def forward(self, tokens: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens `(tokens, width)` after this layer, and the attention `(tiles,)` of
        the first token to the `tiles` tokens behind it.
        """
        queries, keys, values = (
            self.queries_keys_values(self.norm(tokens))
            .view(len(tokens), 3, 1, PARTS, -1)
            .permute(1, 2, 3, 0, 4)
        )
        attended = nystroem_attention(queries, keys, values, self.landmarks)
        joined = self.join((attended + self.neighbours(values))[0].transpose(0, 1).flatten(1))
        logits = queries[0, :, :1] @ keys[0, :, 1 : 1 + tiles].mT / queries.shape[-1] ** 0.5
        return tokens + joined, torch.softmax(logits.squeeze(1), dim=1).mean(dim=0)


class Positions(nn.Module):
    """The pyramid position encoding generator (PPEG): a token learns its position from the tokens
    around it.

    The tokens behind the class token are laid out row by row in a square. To each are added
    depthwise convolutions of 7, 5 and 3 tokens of the square, with zeros beyond its border. The
    class token is not changed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the tokens `(1 + side * side, width)` with their positions."""
        side = isqrt(len(tokens) - 1)
        square = tokens[1:].T.reshape(1, -1, side, side)
        placed = square + sum(convolution(square) for convolution in self.convolutions)
        return torch.cat([tokens[:1], placed[0].flatten(1).T])


def nystroem_attention(queries: Tensor, keys: Tensor, values: Tensor, landmarks: int) -> Tensor:
    """Returns softmax attention through landmarks `(1, parts, tokens, width)`, in time and memory
    linear in the tokens (Xiong et al., AAAI 2021).

    It is softmax(Q K'^T / sqrt(d)) softmax(Q' K'^T / sqrt(d))^+ softmax(Q' K^T / sqrt(d)) V, where
    Q' and K' are means of neighbouring tokens. With as many landmarks as tokens it would be
    softmax(Q K^T / sqrt(d)) V, as A A^+ A = A, and is computed so. The published code fills the
    tokens up with zeros, which are attended to; here the segments differ in length.

    Args:
        queries: Q `(1, parts, tokens, width)`.
        keys: K, likewise.
        values: V, likewise.
        landmarks: the number of means.
    """
    if queries.shape[-2] <= landmarks:
        return scaled_dot_product_attention(queries, keys, values)
    query_means = segment_means(queries, landmarks)
    key_means = segment_means(keys, landmarks)
    core = torch.softmax(query_means @ key_means.mT / queries.shape[-1] ** 0.5, dim=-1)
    gathered = pseudo_inverse(core) @ scaled_dot_product_attention(query_means, keys, values)
    return scaled_dot_product_attention(queries, key_means, gathered)


def segment_means(tokens: Tensor, segments: int) -> Tensor:
    """Returns the means `(…, segments, width)` of runs of tokens `(…, tokens, width)`. The lengths
    of the runs differ by 1 at most; the longer ones come first.
    """
    length, longer = divmod(tokens.shape[-2], segments)
    border = longer * (length + 1)
    long = torch.unflatten(tokens[..., :border, :], -2, (longer, length + 1))
    short = torch.unflatten(tokens[..., border:, :], -2, (segments - longer, length))
    return torch.cat([long.mean(dim=-2), short.mean(dim=-2)], dim=-2)


def pseudo_inverse(matrices: Tensor, iterations: int = 6) -> Tensor:
    """Returns the Moore-Penrose inverses of matrices A `(…, n, n)`, nearly (Xiong et al., equation
    11).

    The iteration is Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, of third order, and starts
    from Z = A^T / (|A|_1 |A|_inf). Six iterations are the published number; more come nearer.
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    columns, rows = (
        matrices.abs().sum(dim=dim, keepdim=True).amax(dim=(-2, -1), keepdim=True)
        for dim in (-2, -1)
    )
    inverse = matrices.mT / (columns * rows)
    for _ in range(iterations):
        product = matrices @ inverse
        inverse = (
            inverse
            @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
            / 4
        )
    return inverse
