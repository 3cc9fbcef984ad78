"""Encoders with names of their own: their networks, their checkpoints' names, their pooling, and
what is said when the hub gives nothing.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from hnm import params
from hnm.errors import EncoderError
from hnm.learning import encoder as module
from hnm.learning.attention_pool import AttentionPool
from hnm.learning.catalogue import CATALOGUE, CatalogueEntry
from hnm.learning.encoder import TileEncoder, import_timm, load_encoder, make_encoder, save_encoder
from tests.support.exactness import assert_same_weights


def tiles(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def small(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> CatalogueEntry:
    """The catalogue's entry with a tiny network of the same kind in its place."""
    tiny = {
        "img_size": 32,
        "patch_size": 16,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        **changes,
    }
    entry = dataclasses.replace(CATALOGUE[name], options={**CATALOGUE[name].options, **tiny})
    monkeypatch.setattr(module, "CATALOGUE", {**CATALOGUE, name: entry})
    return entry


@pytest.mark.parametrize(
    ("name", "depth", "weights", "features"),
    [
        ("uni", 24, 303_350_784, 1024),
        ("uni2-h", 24, 681_394_176, 1536),
        ("virchow2", 32, 631_239_424, 2560),
        ("conch", 12, 87_567_104, 512),
        ("h-optimus-0", 40, 1_134_774_272, 1536),
        ("phikon", 12, 85_798_656, 768),
    ],
)
def test_the_networks_are_of_the_published_size(
    monkeypatch: pytest.MonkeyPatch, name: str, depth: int, weights: int, features: int
) -> None:
    counts = []
    for blocks in (1, 2):
        entry = dataclasses.replace(
            CATALOGUE[name], options={**CATALOGUE[name].options, "depth": blocks}
        )
        monkeypatch.setattr(module, "CATALOGUE", {**CATALOGUE, name: entry})
        with torch.device("meta"):
            encoder = make_encoder(params.Encoder(name=name, weights="random"))
            counts.append(sum(weight.numel() for weight in encoder.backbone.parameters()))
    assert counts[0] + (depth - 1) * (counts[1] - counts[0]) == weights
    assert encoder.record.features == features
    assert encoder.to("meta")(torch.zeros(3, 3, 224, 224, device="meta")).shape == (3, features)


def test_normalisation_is_the_catalogue_s() -> None:
    with torch.device("meta"):
        record = make_encoder(
            params.Encoder(name="resnet18_instance_norm", weights="random")
        ).record
    assert (record.mean, record.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert CATALOGUE["h-optimus-0"].mean == (0.707223, 0.578729, 0.703617)


def test_virchow2_s_feature_is_the_class_token_beside_the_mean_of_the_patch_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small(monkeypatch, "virchow2")
    encoder = make_encoder(params.Encoder(name="virchow2", weights="random"))
    with torch.inference_mode():
        tokens = encoder.backbone((tiles() - encoder.mean) / encoder.std)
        features = encoder(tiles())
    assert tokens.shape == (2, 1 + 4 + 16, 24) and features.shape == (
        2,
        encoder.record.features,
    ) == (2, 48)
    for tile in range(2):
        mean = (
            sum(tokens[tile, place] for place in range(5, 21)) / 16
        )  # four registers stand behind the class token
        assert torch.allclose(features[tile], torch.cat([tokens[tile, 0], mean]), atol=1e-6)


class ResNetSimCLR(torch.nn.Module):
    """The network of DSMIL's SimCLR: all of torchvision's ResNet-18 but its classifier, and two
    layers of projection.
    """

    def __init__(self) -> None:
        super().__init__()
        import_timm()  # makes torchvision importable beside a CPU build of torch
        resnet = importlib.import_module("torchvision.models").resnet18(
            weights=None, norm_layer=torch.nn.InstanceNorm2d
        )
        self.features = torch.nn.Sequential(*list(resnet.children())[:-1])
        self.l1, self.l2 = torch.nn.Linear(512, 512), torch.nn.Linear(512, 256)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_simclr_checkpoint_of_dsmil_s_authors_gives_their_features(
    tmp_path: Path, prefix: str
) -> None:
    torch.manual_seed(4)
    theirs = ResNetSimCLR().eval()
    torch.save(
        {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()},
        tmp_path / "model-v0.pth",
    )
    encoder = make_encoder(
        params.Encoder(name="resnet18_instance_norm", weights=str(tmp_path / "model-v0.pth"))
    )
    save_encoder(encoder, tmp_path / "saved")
    with torch.inference_mode():
        expected = theirs.features(tiles()).flatten(1)
        assert torch.allclose(encoder(tiles()), expected, atol=1e-5)
        assert torch.allclose(load_encoder(tmp_path / "saved")(tiles()), expected, atol=1e-5)
    assert encoder.record.features == 512 and encoder.record.weights == "file"


@pytest.mark.parametrize(
    ("key", "prefix"), [("state_dict", "backbone."), ("net", "module.resnet.")]
)
def test_torchvision_s_own_names_are_taken_too_and_a_nested_checkpoint(
    tmp_path: Path, key: str, prefix: str
) -> None:
    source = make_encoder(params.Encoder(name="resnet18_instance_norm", weights="random", seed=5))
    state = {
        **{f"{prefix}{name}": tensor for name, tensor in source.backbone.state_dict().items()},
        f"{prefix}fc.0.weight": torch.zeros(2, 512),
    }
    torch.save({"epoch": 100, key: state}, tmp_path / "checkpoint.pth.tar")
    encoder = make_encoder(
        params.Encoder(name="resnet18_instance_norm", weights=str(tmp_path / "checkpoint.pth.tar"))
    )
    assert_same_weights(encoder, source)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(
        EncoderError,
        match=(
            r"w.pth is neither a safetensors file nor a checkpoint of tensors alone \(it holds no"
            r" tensors by name, but list\)"
        ),
    ):
        make_encoder(params.Encoder(name="resnet18_instance_norm", weights=str(tmp_path / "w.pth")))


def transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A timm vision transformer's tensors as the package transformers names them, with a pooler."""
    there = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inner = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    named = {"pooler.dense.weight": torch.zeros(24, 24), "pooler.dense.bias": torch.zeros(24)}
    for name, tensor in state.items():
        if name in there:
            named[there[name]] = tensor
            continue
        _, block, *place, kind = name.split(".")
        if place == ["attn", "qkv"]:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = (
                    rows.contiguous()
                )
        else:
            named[f"encoder.layer.{block}.{inner['.'.join(place)]}.{kind}"] = tensor
    return named


def test_phikon_comes_from_the_hub_under_the_names_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, "phikon")
    source = make_encoder(params.Encoder(name="phikon", weights="random", seed=9))
    save_file(transformers_names(source.backbone.state_dict()), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repository, file: {
            ("owkin/phikon", "model.safetensors"): tmp_path / "model.safetensors"
        }[repository, file],
    )
    encoder = make_encoder(params.Encoder(name="phikon", weights="hub"))
    assert_same_weights(encoder, source)
    assert encoder.record.weights == "hub"


class ConchTower(torch.nn.Module):
    """CONCH's pooling of tokens, as published, for a trunk of 24 features; with what of its
    checkpoint an encoder has no use for.
    """

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = torch.nn.Module()
        self.attn_pool_contrast.query = torch.nn.Parameter(torch.randn(1, 16))
        self.attn_pool_contrast.attn = torch.nn.MultiheadAttention(16, 4, kdim=24, vdim=24)
        self.attn_pool_contrast.ln_q, self.attn_pool_contrast.ln_k = (
            torch.nn.LayerNorm(16),
            torch.nn.LayerNorm(24),
        )
        self.ln_contrast = torch.nn.LayerNorm(16)
        self.proj_contrast = torch.nn.Parameter(torch.randn(16, 16))
        self.attn_pool_caption = torch.nn.Linear(2, 2)
        for weight in self.parameters():
            torch.nn.init.normal_(weight, std=0.3)  # no bias is zero, no norm is one

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        pool: Any = self.attn_pool_contrast
        tokens = pool.ln_k(self.trunk(tiles)).permute(1, 0, 2)
        query = pool.ln_q(pool.query).unsqueeze(1).repeat(1, len(tiles), 1)
        pooled: torch.Tensor = self.ln_contrast(
            pool.attn(query, tokens, tokens, need_weights=False)[0][0]
        )
        return pooled


def test_conch_s_checkpoint_gives_the_embedding_of_its_image_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = small(monkeypatch, "conch")
    entry = dataclasses.replace(entry, head=lambda: AttentionPool(width=24, features=16, heads=4))
    monkeypatch.setattr(module, "CATALOGUE", {**CATALOGUE, "conch": entry})
    torch.manual_seed(6)
    theirs = ConchTower(
        import_timm().create_model(entry.architecture, num_classes=0, **entry.options)
    ).eval()
    state = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(
        {**state, "logit_scale": torch.zeros(()), "text.cls_emb": torch.zeros(4)},
        tmp_path / "pytorch_model.bin",
    )
    encoder = make_encoder(
        params.Encoder(name="conch", weights=str(tmp_path / "pytorch_model.bin"))
    )
    save_encoder(encoder, tmp_path / "saved")
    with torch.inference_mode():
        expected = theirs((tiles() - encoder.mean) / encoder.std)
        assert expected.std() > 0.1
        assert torch.allclose(encoder(tiles()), expected, atol=1e-5)
        assert torch.allclose(load_encoder(tmp_path / "saved")(tiles()), expected, atol=1e-5)
    assert encoder.record.features == 16


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(repository: str, file: str) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


@pytest.fixture
def _tiny_uni(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, "uni")


@pytest.mark.usefixtures("_tiny_uni")
class TestTheHubGivesNothing:
    def encoder(self) -> TileEncoder:
        return make_encoder(params.Encoder(name="uni", weights="hub"))

    def test_without_access_it_says_where_to_accept_the_licence(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusing(monkeypatch, GatedRepoError.__new__(GatedRepoError))
        with pytest.raises(
            EncoderError,
            match=(
                r"weights of 'uni' \(licence: CC BY-NC-ND 4.0\); accept the licence at"
                r" https://huggingface.co/MahmoodLab/UNI and set HF_TOKEN"
            ),
        ):
            self.encoder()

    def test_without_a_network_it_says_what_to_fetch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refusing(monkeypatch, ConnectionError("no route"))
        with pytest.raises(
            EncoderError,
            match=(
                r"ConnectionError: no route\); check the network, or download pytorch_model.bin on"
                r" a machine .*accept the licence first.*to its path"
            ),
        ):
            self.encoder()


def test_an_encoder_that_is_not_on_the_hub_says_so() -> None:
    with pytest.raises(
        EncoderError,
        match=(
            r"the weights of 'resnet18_instance_norm' are not on the hub; set encoder.weights to"
            r" the path of a checkpoint"
        ),
    ):
        make_encoder(params.Encoder(name="resnet18_instance_norm", weights="hub"))


def test_tiles_that_do_not_fit_a_transformer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, "uni")
    with pytest.raises(
        EncoderError,
        match=(
            r"'uni' cuts tiles into patches of 16 px, which do not fill 40 px; set tiles.tile_px to"
            r" a multiple, best 224"
        ),
    ):
        make_encoder(params.Encoder(name="uni", weights="random"))(tiles(side=40))
    small(monkeypatch, "uni", dynamic_img_size=False)
    with pytest.raises(
        EncoderError, match=r"'uni' takes tiles of 32 px alone, not of 64; set tiles.tile_px to 32"
    ):
        make_encoder(params.Encoder(name="uni", weights="random"))(tiles())


def test_a_tile_whose_last_map_is_one_value_cannot_be_normalised_by_itself() -> None:
    encoder = make_encoder(params.Encoder(name="resnet18_instance_norm", weights="random"))
    with pytest.raises(
        EncoderError,
        match=(
            r"'resnet18_instance_norm' .* of 32 px its last is a single value; set tiles.tile_px"
            r" above 32, best 224"
        ),
    ):
        encoder(torch.zeros(2, 3, 32, 32))
    assert encoder(torch.zeros(2, 3, 33, 33)).shape == (2, 512)
