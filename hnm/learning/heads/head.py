"""What every head is: standardised features of one slide in, logits and attention out; and the loss
of its tiles.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hnm import params


class HeadOutput(NamedTuple):
    """What a head says of one slide."""

    slide_logit: Tensor
    """`()`: above 0 is positive; of a head of several classes `(classes,)`, each against the
    rest.
    """
    tile_logits: Tensor
    """`(tiles,)`, or `(tiles, classes)`."""
    attention: Tensor
    """`(tiles,)`, at least 0, sums to 1; or `(tiles, classes)`, of which each class's does."""

    def of(self, label: int) -> "HeadOutput":
        """What is said of one of the head's `labels`, as a head of two classes says it."""
        if self.slide_logit.ndim == 0:
            return self
        return HeadOutput(
            self.slide_logit[label], self.tile_logits[:, label], self.attention[:, label]
        )


class Head(nn.Module):
    """Base of all heads. A head takes one slide at a time: padding slides to one length changes
    DSMIL's answer.
    """

    mean: Tensor
    scale: Tensor
    classes: int = 2
    """The labels of slides are 0 to `classes` - 1."""

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__()
        self.dropout = nn.Dropout(section.dropout)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that the head has logits for: label 1 of two, each one of several."""
        return (1,) if self.classes == 2 else tuple(range(self.classes))

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets the standardisation of the features, each `(features,)`; a constant feature stays as
        it is.
        """
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> HeadOutput:
        """What the head says of a slide with these features `(tiles, features)`, as the encoder
        gave them.
        """
        return self.together([features])[0]

    def together(self, slides: Sequence[Tensor]) -> Sequence[HeadOutput]:
        """`forward` of several slides, such as those of a step. Each is a bag of its own."""
        features = torch.cat(list(slides)) if len(slides) > 1 else slides[0]
        return self.pool_each(
            self.dropout((features - self.mean) / self.scale), [len(slide) for slide in slides]
        )

    def pool_each(self, features: Tensor, counts: list[int]) -> Sequence[HeadOutput]:
        """`pool` of each slide of `features` `(tiles, features)`: the first has the first of
        `counts` tiles, and so on. A kind may have a quicker way.
        """
        return [self.pool(own) for own in torch.split(features, counts)]

    def pool(self, features: Tensor) -> HeadOutput:
        """`forward` from standardised features `(tiles, features)`; each kind of head has its
        own.
        """
        raise NotImplementedError

    def tile_loss(self, output: HeadOutput, label: int) -> Tensor:
        """The loss that trains the tiles' logits by their slide's label, 0 or 1: the cross-entropy
        of the highest one.

        A positive slide has a positive tile, a negative slide none. A kind whose paper trains its
        tiles otherwise overrides this.
        """
        return cross_entropy(output.tile_logits.max(), label)


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """Mean binary cross-entropy of logits of any shape that all have the label 0 or 1."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
