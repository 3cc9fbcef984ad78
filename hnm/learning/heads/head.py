"""What every head is: standardised features of one slide in, logits and attention out; and how one is made, kept and read."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hnm import params
from hnm.draws import seed_of
from hnm.errors import HeadError
from hnm.store import read_json, whole, write_json


class HeadOutput(NamedTuple):
    """What a head says of one slide."""

    slide_logit: Tensor
    """`()`: above 0 is positive."""
    tile_logits: Tensor
    """`(tiles,)`"""
    attention: Tensor
    """`(tiles,)`, sums to 1."""


class Head(nn.Module):
    """Base of all heads. A head takes one slide at a time: padding slides to one length changes DSMIL's answer."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, section: params.Head) -> None:
        super().__init__()
        self.dropout = nn.Dropout(section.dropout)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets the standardisation of the features, each `(features,)`; a constant feature stays as it is."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> HeadOutput:
        """What the head says of a slide with these features `(tiles, features)`, as the encoder gave them."""
        return self.pool(self.dropout((features - self.mean) / self.scale))

    def pool(self, features: Tensor) -> HeadOutput:
        """`forward` from standardised features `(tiles, features)`; each kind of head has its own."""
        raise NotImplementedError


def make_head(features: int, section: params.Head) -> Head:
    """A new head of kind `head.kind` for features of this width; its weights are drawn from `head.seed`."""
    from hnm.learning.heads.dsmil import DSMIL

    kinds = {"dsmil": DSMIL}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head weights"))
        return kinds[section.kind](features, section)


def save_head(head: Head, section: params.Head, folder: Path) -> None:
    """The head as `folder/head.json` and `folder/weights.safetensors`; equal heads give equal bytes."""
    write_json({"features": len(head.mean), "head": section.model_dump(mode="json")}, folder / "head.json")
    with whole(folder / "weights.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, temporary)


def load_head(folder: Path) -> Head:
    """The head that `save_head` wrote, ready to predict; no pickle is read.

    Raises:
        HeadError: `folder` holds no head, or one whose record and weights do not fit each other.
    """
    record = read_json(folder / "head.json", HeadError)
    try:
        head = make_head(record["features"], params.Head.model_validate(record["head"]))
        head.load_state_dict(load_file(folder / "weights.safetensors"))
    except (KeyError, TypeError, ValueError, RuntimeError, FileNotFoundError, SafetensorError) as error:
        raise HeadError(f"{folder} holds no head that can be read ({error}); run the stage that makes it again") from None
    return head.eval()
