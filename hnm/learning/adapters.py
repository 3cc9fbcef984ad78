"""Low-rank adapters: what a large encoder learns in fine-tuning as two thin matrices beside each
linear layer.
"""

from typing import cast

import torch
from torch import Tensor, nn

from hnm.errors import FinetuneError
from hnm.seeds import seed_of


class Adapter(nn.Module):
    """A linear layer that keeps its weights, plus a product of two thin matrices that is trained:
    `W x + b + B A x` (Hu et al. 2021, equation 3, alpha = rank).

    `A` `(rank, inputs)` is drawn, `B` `(outputs, rank)` starts at 0, so that at first nothing is
    changed.
    """

    def __init__(self, layer: nn.Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        spread = layer.in_features**-0.5
        drawn = torch.rand(rank, layer.in_features, generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter((spread * (2 * drawn - 1)).to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, features: Tensor) -> Tensor:
        """`(…, inputs)` to `(…, outputs)`."""
        adapted: Tensor = self.layer(features) + nn.functional.linear(
            nn.functional.linear(features, self.down), self.up
        )
        return adapted

    @property
    def weight(self) -> Tensor:
        """`(outputs, inputs)` of the whole, for attention that takes a layer's matrix and not its
        output, as BEiT, EVA-02 and Swin 2 do.
        """
        return self.layer.weight + self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        """`(outputs,)`, beside `weight`."""
        return self.layer.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that computes the same alone."""
        self.layer.weight += self.up @ self.down
        return self.layer


def add_adapters(backbone: nn.Module, rank: int, seed: int) -> None:
    """Puts an adapter of `rank` around every linear layer that is to be trained, and leaves nothing
    else of the backbone to train.

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
    """Puts the linear layers back, each with its adapter added to its weights: the encoder is again
    one of its architecture.
    """
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, Adapter):
            _put(backbone, name, layer.merged())


def _put(backbone: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(parent), own, layer)
