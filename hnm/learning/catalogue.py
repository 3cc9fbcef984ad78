"""The encoders that have a name in hnm: how timm builds them, where their weights lie, under which
licence, and how their tensors are named.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hnm.learning.attention_pool import AttentionPool

State = Mapping[str, Tensor]
"""The tensors of a checkpoint by name."""
Channels = tuple[float, float, float]
"""A number for red, green and blue each."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NON_COMMERCIAL = "CC BY-NC-ND 4.0"


def resnet_names(state: State) -> dict[str, Tensor]:
    """Returns the tensors of a SimCLR checkpoint of DSMIL's authors by timm's names.

    Their network is torchvision's ResNet without its classifier as one sequence, `features.0` to
    `features.7`, and two layers `l1`, `l2` of a projection, which an encoder does not have.
    Checkpoints with torchvision's names are taken too, with or without the prefixes `module.`,
    `backbone.`, `encoder.`, `encoder_q.` and `resnet.` (Huang et al.). A classifier or projection
    is dropped.
    """
    places = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    named = {}
    for name, tensor in state.items():
        plain = re.sub(r"^(module\.|backbone\.|encoder\.|encoder_q\.|resnet\.)+", "", name)
        if match := re.match(r"features\.(\d+)\.", plain):
            plain = f"{places.get(match[1], match[0])}.{plain[match.end() :]}"
        if not plain.startswith(("l1.", "l2.", "fc.", "projection_head.")):
            named[plain] = tensor
    return named


def vision_transformer_names(state: State) -> dict[str, Tensor]:
    """Returns the tensors of a vision transformer of the package transformers by timm's names.
    Query, key and value become one matrix; a pooler is dropped.
    """
    places = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("vit.")
        block = re.match(r"encoder\.layer\.(\d+)\.", plain)
        prefix, inner = (f"blocks.{block[1]}.", plain[block.end() :]) if block else ("", plain)
        place, _, kind = inner.rpartition(".")
        if inner in places:
            named[places[inner]] = tensor
        elif place == "attention.attention.query":
            parts = [
                state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")
            ]
            named[f"{prefix}attn.qkv.{kind}"] = torch.cat(parts)
        elif place not in {"attention.attention.key", "attention.attention.value", "pooler.dense"}:
            named[f"{prefix}{places.get(place, place)}.{kind}"] = tensor
    return named


def conch_names(state: State) -> dict[str, Tensor]:
    """Returns the tensors of CONCH's image tower by the names of timm and `AttentionPool`. The text
    tower, the pool of captions and the projection onto text are dropped.
    """
    places = {
        "ln_contrast.": "norm.",
        "attn_pool_contrast.query": "query",
        "attn_pool_contrast.ln_q.": "norm_query.",
        "attn_pool_contrast.ln_k.": "norm_tokens.",
        "attn_pool_contrast.attn.q_proj_weight": "to_query.weight",
        "attn_pool_contrast.attn.k_proj_weight": "to_key.weight",
        "attn_pool_contrast.attn.v_proj_weight": "to_value.weight",
        "attn_pool_contrast.attn.out_proj.": "out.",
    }
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("visual.")
        if plain.startswith("trunk."):
            named[plain.removeprefix("trunk.")] = tensor
        elif plain == "attn_pool_contrast.attn.in_proj_bias":
            named |= {
                f"head.to_{part}.bias": bias
                for part, bias in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            }
        elif prefix := next((prefix for prefix in places if plain.startswith(prefix)), None):
            named[f"head.{places[prefix]}{plain.removeprefix(prefix)}"] = tensor
    return named


@dataclass(frozen=True)
class CatalogueEntry:
    """How an encoder is built, and where its weights lie."""

    architecture: str
    """timm's name of the network."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that timm builds it with; layers are named as in `timm.layers` or `torch.nn`."""
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]
    pooling: Literal["timm", "class_and_mean"] = "timm"
    """How tokens become a feature: as in timm's model, or as the class token followed by the mean
    of the patch tokens.
    """
    head: Callable[[], AttentionPool] | None = None
    """Makes the layer that pools tokens to a feature, in the place of timm's classifier. None where
    timm has the pooling of the encoder's authors.
    """
    hub: str = ""
    """Repository on the Hugging Face hub; empty where weights come by path alone."""
    file: str = "pytorch_model.bin"
    licence: str = ""
    gated: bool = False
    """Whether the hub gives the weights only to accounts that have accepted the licence."""
    names: Callable[[State], dict[str, Tensor]] = dict
    """Gives the tensors of a checkpoint timm's names."""


CATALOGUE: Mapping[str, CatalogueEntry] = {
    # Li et al. 2021 (DSMIL) and Huang et al. 2024: pixels in [0, 1] without normalisation, norms
    # without weights
    "resnet18_instance_norm": CatalogueEntry(
        "resnet18",
        {"norm_layer": "InstanceNorm2d"},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        names=resnet_names,
    ),
    "uni": CatalogueEntry(
        "vit_large_patch16_224",
        {"init_values": 1e-5, "dynamic_img_size": True},
        hub="MahmoodLab/UNI",
        licence=NON_COMMERCIAL,
        gated=True,
    ),
    "uni2-h": CatalogueEntry(
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        hub="MahmoodLab/UNI2-h",
        licence=NON_COMMERCIAL,
        gated=True,
    ),
    "virchow2": CatalogueEntry(
        "vit_huge_patch14_224",
        {
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "SiLU",
            "reg_tokens": 4,
            "global_pool": "",
            "dynamic_img_size": True,
        },
        pooling="class_and_mean",
        hub="paige-ai/Virchow2",
        licence=NON_COMMERCIAL,
        gated=True,
    ),
    # Lu et al. 2024: the image's embedding before its projection onto text, as its authors advise
    # for all but text
    "conch": CatalogueEntry(
        "vit_base_patch16_224",
        {"img_size": 448, "global_pool": "", "dynamic_img_size": True},
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        head=lambda: AttentionPool(width=768, features=512, heads=8),
        hub="MahmoodLab/conch",
        licence=NON_COMMERCIAL,
        gated=True,
        names=conch_names,
    ),
    "h-optimus-0": CatalogueEntry(
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
        hub="bioptimus/H-optimus-0",
        licence="Apache-2.0",
        gated=True,
    ),
    "phikon": CatalogueEntry(
        "vit_base_patch16_224",
        {"dynamic_img_size": True},
        hub="owkin/phikon",
        file="model.safetensors",
        licence="Owkin non-commercial licence",
        names=vision_transformer_names,
    ),
}
"""`encoder.name` -> entry. Architectures, options and normalisations are those of the model cards
and config files on the hub.
"""
