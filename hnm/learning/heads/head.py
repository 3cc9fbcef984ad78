"""The base of all heads: the features of one slide to its logit, its tiles' logits and their
attention, and the loss of the tiles.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hnm import params


class HeadOutput(NamedTuple):
    """What a head says of one slide. Logits are those of label 1 against label 0."""

    slide_logit: Tensor
    """`()`"""
    tile_logits: Tensor
    """`(tiles,)`"""
    attention: Tensor
    """`(tiles,)`, at least 0; its sum is 1."""


class Head(nn.Module):
    """Base of all heads. Slides are never padded to one length, as padding changes DSMIL's
    answer.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__()
        self.dropout = nn.Dropout(section.dropout)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets the mean and the standard deviation, each `(features,)`, that features are
        standardised by. A constant feature is not scaled.
        """
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> HeadOutput:
        """Returns what the head says of a slide with the features `(tiles, features)`, which are
        those of the encoder, not yet standardised.
        """
        return self.together([features])[0]

    def together(self, slides: Sequence[Tensor]) -> Sequence[HeadOutput]:
        """Returns `forward` of several slides, such as the two of a step. No slide changes what
        the head says of another.
        """
        features = torch.cat(list(slides)) if len(slides) > 1 else slides[0]
        return self.pool_each(
            self.dropout((features - self.mean) / self.scale), [len(slide) for slide in slides]
        )

    def pool_each(self, features: Tensor, counts: list[int]) -> Sequence[HeadOutput]:
        """Returns `pool` of each slide. The rows of `features` `(tiles, features)` are the tiles of
        the first slide, `counts[0]` of them, then those of the second, and so on. A kind of head
        overrides this where slides can share work.
        """
        return [self.pool(slide) for slide in torch.split(features, counts)]

    def pool(self, features: Tensor) -> HeadOutput:
        """Returns what the head says of a slide with the standardised features `(tiles,
        features)`. Each kind of head implements this.
        """
        raise NotImplementedError

    def tile_loss(self, output: HeadOutput, label: int) -> Tensor:
        """Returns the loss `()` that trains the tile logits by the label of their slide, 0 or 1:
        the cross-entropy of the highest tile logit.

        It is right because a positive slide has a positive tile and a negative slide has none. A
        kind of head whose paper trains tiles otherwise overrides this.
        """
        return label_loss(output.tile_logits.max(), label)


def label_loss(logits: Tensor, label: int) -> Tensor:
    """Returns the mean binary cross-entropy of logits of any shape that all have one label, 0 or
    1.
    """
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
