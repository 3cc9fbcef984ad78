"""Adapters: what they compute, what is trained, and that merging changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.adapters import Adapter, add_adapters, merge_adapters
from hnm.learning.compute import CPU
from hnm.learning.encoder import TileEncoder, import_timm, make_encoder
from hnm.learning.training.fit_encoder import fit_encoder
from tests.support.exactness import assert_close

SECTION = params.Finetune(
    epochs=1,
    batch_tiles=4,
    learning_rate=1e-2,
    projection_features=8,
    adapter_rank=2,
    freeze_layers=0,
)
TILES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


def transformer() -> TileEncoder:
    return make_encoder(params.Encoder(name="test_vit", weights="random"))


def beit() -> nn.Module:
    """An attention that takes its layers' matrices, not their outputs."""
    torch.manual_seed(0)
    backbone: nn.Module = import_timm().create_model(
        "beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=32, num_classes=0
    )
    return backbone.eval()


def test_adapters_of_an_attention_that_takes_the_matrices_of_its_layers() -> None:
    plain, adapted = beit(), beit()
    add_adapters(adapted, 3, seed=1)
    tiles = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    # another sum (W x + B A x with B = 0, and W + B A as a matrix of its own): its kernels may
    # differ
    assert_close(adapted(tiles), plain(tiles))
    adapted(tiles).square().sum().backward()
    assert all(
        weight.grad is not None
        for name, weight in adapted.named_parameters()
        if name.endswith(".up")
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name.endswith(".up"):
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        before = adapted(tiles)
        merge_adapters(adapted)
        assert torch.allclose(adapted(tiles), before, atol=1e-5) and not torch.allclose(
            plain(tiles), before, atol=1e-2
        )


def test_an_adapter_by_hand() -> None:
    layer = torch.nn.Linear(2, 2)
    adapter = Adapter(layer, 1, seed=0)
    with torch.no_grad():
        layer.weight[:], layer.bias[:] = (
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            torch.tensor([0.5, 0.0]),
        )
        adapter.down[:], adapter.up[:] = torch.tensor([[2.0, -1.0]]), torch.tensor([[10.0], [0.0]])
    # exact on every processor, as each term is a small number of halves: W x + b = (5.5, 11), A x =
    # 2 - 2 = 0 and for (1, 0): (1.5, 3) + B 2 = (21.5, 3)
    assert adapter(torch.tensor([[1.0, 2.0], [1.0, 0.0]])).tolist() == [[5.5, 11.0], [21.5, 3.0]]
    assert adapter.merged()(torch.tensor([[1.0, 0.0]])).tolist() == [[21.5, 3.0]]


def test_at_first_nothing_is_changed_and_the_adapters_alone_are_trained() -> None:
    plain, adapted = transformer(), transformer()
    add_adapters(adapted.backbone, 3, seed=1)
    tiles = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # W x + B A x with B = 0 is another computation than W x: its kernels may differ
        assert_close(adapted(tiles), plain(tiles))
    trained = {name for name, weight in adapted.backbone.named_parameters() if weight.requires_grad}
    assert trained and all(name.endswith((".up", ".down")) for name in trained)


def test_merging_changes_no_feature_and_gives_the_architecture_back() -> None:
    encoder = transformer()
    names = list(encoder.backbone.state_dict())
    add_adapters(encoder.backbone, 3, seed=1)
    with torch.no_grad():
        for name, weight in encoder.backbone.named_parameters():
            if name.endswith(".up"):
                weight += 0.1 * torch.randn(
                    weight.shape, generator=torch.Generator().manual_seed(2)
                )
    tiles = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = encoder(tiles)
        merge_adapters(encoder.backbone)
        assert torch.allclose(encoder(tiles), before, atol=1e-5)
        assert not torch.allclose(transformer()(tiles), before, atol=1e-2)
    assert list(encoder.backbone.state_dict()) == names


def test_fine_tuning_by_adapters_moves_linear_layers_by_the_rank_and_spares_frozen_ones() -> None:
    tuned, before = transformer(), transformer().backbone.state_dict()
    fit_encoder(
        tuned,
        TILES.__getitem__,
        np.array([0, 1] * 3),
        SECTION.model_copy(update={"freeze_layers": 2}),
        CPU,
        lambda epoch, metrics: None,
    )
    after = tuned.backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "blocks.3.attn.qkv.weight" in moved and all(
        name.endswith(".weight") and ".norm" not in name for name in moved
    )
    assert not [name for name in moved if name.startswith(("patch_embed", "blocks.0."))]
    change = after["blocks.3.mlp.fc1.weight"] - before["blocks.3.mlp.fc1.weight"]
    assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) == 2


def test_a_network_without_linear_layers_is_refused() -> None:
    encoder = make_encoder(params.Encoder(name="test_resnet", weights="random"))
    with pytest.raises(
        FinetuneError,
        match=(
            r"finetune.adapter_rank=2, but no layer of the encoder that is to be trained is linear:"
            r" adapters are for vision"
        ),
    ):
        add_adapters(encoder.backbone, 2, seed=0)
