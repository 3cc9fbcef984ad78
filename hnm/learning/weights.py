"""Weights from anybody: read once, whole, without running anything, and compared with what they are
for before memory is asked for.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hnm.files import Refuse, key_of, read_bounded

FILE = "weights.safetensors"
MOST_RECORD = 1 << 20
MOST_WEIGHTS = 64 << 30
MOST_FEATURES = 1 << 16
"""Width of a feature."""
_NUMBERS = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


@dataclass(frozen=True)
class Parts:
    """The two files of an encoder or a head, as they were read: what is made of them is made of the
    bytes that `digest` is of.
    """

    where: str
    """Their folder, for errors."""
    record: bytes
    weights: bytes

    @property
    def digest(self) -> str:
        """Of what they compute."""
        return key_of(
            record=hashlib.sha256(self.record).hexdigest(),
            weights=hashlib.sha256(self.weights).hexdigest(),
        )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """`tensors` as the safetensors file `path`; Python writes it, so that a full disk is an
    `OSError` and the mode is the umask's.
    """
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_parts(folder: Path, record: str, kind: Refuse, cure: str) -> Parts:
    """The files `record` and `weights.safetensors` of `folder`; raises `kind` where one is missing,
    no regular file or too large.
    """
    parts = []
    for name, most in ((record, MOST_RECORD), (FILE, MOST_WEIGHTS)):
        path = folder / name
        if not path.exists():
            raise kind(f"{path} does not exist{cure}")
        parts.append(read_bounded(path, kind, what=str(path), cure=cure, most=most))
    return Parts(str(folder), *parts)


def tensors_of(content: bytes, kind: Refuse, *, what: str, cure: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; raises `kind` where its header and its bytes do
    not fit, or a number is not finite.
    """
    try:
        tensors = load(content)
    except (
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
        AttributeError,
        MemoryError,
    ) as error:
        raise kind(f"{what} is no safetensors file ({_line(error)}){cure}") from None
    return _checked(tensors, kind, what=what, cure=cure)


def checkpoint_of(content: bytes, kind: Refuse, *, what: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that `torch.save` wrote, by name, and of nothing else; no code is
    run, and no more memory asked for than it has bytes.

    Raises:
        kind: it is of another form, holds anything but tensors by name, packed or claimed bytes, or
        numbers that are not finite.
    """
    cure = "; save the network's state_dict() with safetensors.torch.save_file"
    try:
        claimed = _unpickled(content, torch.device("meta"))
        storages = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in claimed.values()
        }
        if sum(storages.values()) > len(content) or any(
            _needs(tensor) > tensor.untyped_storage().nbytes() for tensor in claimed.values()
        ):
            raise ValueError("its tensors claim more bytes than the file has")
        tensors = _unpickled(content, torch.device("cpu"))
    except Exception as error:  # an unpickler raises whatever its bytes make it raise
        raise kind(
            f"{what} is neither a safetensors file nor a checkpoint of tensors alone"
            f" ({_line(error)}); other pickles are not read, for they can run code: save its"
            " tensors with safetensors.torch.save_file"
        ) from None
    return _checked(tensors, kind, what=what, cure=cure)


def fit(
    module: Callable[[], nn.Module],
    state: Mapping[str, Tensor],
    kind: Refuse,
    *,
    what: str,
    cure: str,
) -> None:
    """Raises `kind` where `state` are not the weights of what `module` makes, which is made without
    memory for it.
    """
    try:
        with torch.device("meta"):
            wanted = module().state_dict()
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError) as error:
        raise kind(f"{what} cannot be made as its record says ({_line(error)}){cure}") from None
    check_fit(wanted, state, kind, what=what, cure=cure)


def check_fit(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], kind: Refuse, *, what: str, cure: str
) -> None:
    """Raises `kind` where the tensors of `state` are not those of `wanted` by name, shape and sort
    of number.
    """
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    both = sorted(wanted.keys() & state.keys())
    shapes = [name for name in both if wanted[name].shape != state[name].shape]
    sorts = [
        name
        for name in both
        if wanted[name].dtype.is_floating_point != state[name].dtype.is_floating_point
    ]
    if missing or extra or shapes or sorts:
        names = [[name[:80] for name in group[:2]] for group in (missing, extra, shapes + sorts)]
        raise kind(
            f"the weights of {what} do not fit: {len(missing)} tensors missing {names[0]},"
            f" {len(extra)} unknown {names[1]}, {len(shapes)} of another shape, {len(sorts)} of"
            f" another sort of number {names[2]}{cure}"
        )


def _unpickled(content: bytes, device: torch.device) -> dict[str, Tensor]:
    """The tensors by name that a zip file of `torch.save` holds, on `device`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(
        member.file_size for member in members
    ) > len(content):
        raise ValueError("it is packed, and what it unpacks to is not known")
    found = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
    for key in ("state_dict", "model", "net"):
        found = (
            found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
        )
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise ValueError(f"it holds no tensors by name, but {type(found).__name__}")
    if odd := [
        tensor
        for tensor in found.values()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _NUMBERS
    ]:
        raise ValueError(f"it holds a tensor of {odd[0].dtype}, {odd[0].layout}")
    return found


def _needs(tensor: Tensor) -> int:
    """Bytes of storage up to a tensor's last number, or of all its numbers where one stands for
    many.
    """
    if not tensor.numel():
        return 0
    last = tensor.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return max(int(last) + 1, tensor.numel()) * tensor.element_size()


def _checked(
    tensors: dict[str, Tensor], kind: Refuse, *, what: str, cure: str
) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.dtype not in _NUMBERS:
            raise kind(
                f"{what}: the tensor {name[:80]} holds {tensor.dtype}, not plain numbers{cure}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise kind(f"{what}: the tensor {name[:80]} holds numbers that are not finite{cure}")
    return tensors


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{lines[0][:300]}" if lines and lines[0] else type(error).__name__
