"""Attention pooling: one learnt query gathers a transformer's tokens into a feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionPool(nn.Module):
    """Cross-attention of one learnt query over normalised tokens, whose output is normalised again:
    the image pooling of CoCa (Yu et al., TMLR 2022) and CONCH.

    Query, key and value each have a linear layer, so that adapters find them.
    """

    def __init__(self, width: int, features: int, heads: int) -> None:
        super().__init__()
        self.features = features
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, features))
        self.norm_query = nn.LayerNorm(features)
        self.norm_tokens = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(features)
        self.to_query = nn.Linear(features, features)
        self.to_key = nn.Linear(width, features)
        self.to_value = nn.Linear(width, features)
        self.out = nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the features `(tiles, features)` of tokens `(tiles, tokens, width)`."""
        tokens = self.norm_tokens(tokens)
        query = self.to_query(self.norm_query(self.query)).expand(len(tokens), 1, -1)
        by_head = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (query, self.to_key(tokens), self.to_value(tokens))
        ]
        gathered = functional.scaled_dot_product_attention(*by_head)
        feature: Tensor = self.norm(self.out(gathered.transpose(1, 2).flatten(1)))
        return feature
