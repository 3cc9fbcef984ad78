"""Low-rank adapters: two thin matrices beside each linear layer, which a large encoder learns in
the place of its weights.
"""

from typing import cast

import torch
from torch import Tensor, nn

from hnm.errors import FinetuneError
from hnm.seeds import seed_of


class Adapter(nn.Module):
    """A linear layer that keeps its weights, with a trained product of two thin matrices beside it:
    `W x + b + B A x` (Hu et al. 2021, equation 3, with alpha = rank).

    `A` `(rank, inputs)` is drawn at random and `B` `(outputs, rank)` starts at 0, so that the
    adapter changes nothing at first.
    """

    def __init__(self, layer: nn.Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        spread = layer.in_features**-0.5
        drawn = torch.rand(rank, layer.in_features, generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter((spread * (2 * drawn - 1)).to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, features: Tensor) -> Tensor:
        """Returns the outputs `(…, outputs)` of features `(…, inputs)`."""
        adapted: Tensor = self.layer(features) + nn.functional.linear(
            nn.functional.linear(features, self.down), self.up
        )
        return adapted

    @property
    def weight(self) -> Tensor:
        """The matrix `(outputs, inputs)` of layer and adapter together. The attention of BEiT,
        EVA-02 and Swin 2 takes it in the place of the layer's output.
        """
        return self.layer.weight + self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        """The bias `(outputs,)` beside `weight`."""
        return self.layer.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the linear layer that computes the same without an adapter."""
        self.layer.weight += self.up @ self.down
        return self.layer


def add_adapters(backbone: nn.Module, rank: int, seed: int) -> None:
    """Puts an adapter of `rank` around every linear layer that is to be trained. Nothing else of
    the backbone is trained then.

    Raises:
        FinetuneError: no linear layer is to be trained.
    """
    layers = [
        name
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    ]
    if not layers:
        raise FinetuneError(
            f"finetune.adapter_rank={rank}, but no layer of the encoder that is to be trained is"
            " linear: adapters are for vision transformers; set it to 0, or lower"
            " finetune.freeze_layers"
        )
    backbone.requires_grad_(False)
    for name in layers:
        layer = cast(nn.Linear, backbone.get_submodule(name))
        _put(backbone, name, Adapter(layer, rank, seed_of(seed, "adapter", name)))


def merge_adapters(backbone: nn.Module) -> None:
    """Puts the linear layers back, each with its adapter added to its weights, so that the encoder
    has the tensors of its architecture again.
    """
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, Adapter):
            _put(backbone, name, layer.merged())


def _put(backbone: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts `layer` in the place of the submodule `name`."""
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, layer)
