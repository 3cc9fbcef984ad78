"""Weights from anybody: read once and whole, without running anything, and compared with the
network that they are for before memory is asked for.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hnm.files import Refuse, key_of, parse_json, read_bounded

FILE = "weights.safetensors"
MOST_RECORD = 1 << 20
"""Most bytes of a record."""
MOST_WEIGHTS = 64 << 30
"""Most bytes of a file of weights."""
MOST_FEATURES = 1 << 16
"""Largest width of a feature."""
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

Record = TypeVar("Record")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Parts:
    """The bytes of the two files of an encoder or a head. What is made of them and what `digest`
    says are of the same bytes, whatever happens to the files.
    """

    where: str
    """Their folder, for errors."""
    record: bytes
    weights: bytes

    @property
    def digest(self) -> str:
        """The digest of what they compute."""
        return key_of(
            record=hashlib.sha256(self.record).hexdigest(),
            weights=hashlib.sha256(self.weights).hexdigest(),
        )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes `tensors` as the safetensors file `path`.

    Python and not the library writes the file, so that a full disk is an `OSError` and the mode of
    the file is the umask's.
    """
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_parts(folder: Path, record: str, refuse: Refuse, cure: str) -> Parts:
    """Returns the files `record` and `weights.safetensors` of `folder`.

    Raises:
        refuse: a file is missing, no regular file or too large.
    """
    parts = []
    for name, most in ((record, MOST_RECORD), (FILE, MOST_WEIGHTS)):
        path = folder / name
        if not path.exists():
            raise refuse(f"{path} does not exist{cure}")
        parts.append(read_bounded(path, refuse, what=str(path), cure=cure, most=most))
    return Parts(str(folder), *parts)


def parse_record(
    kind: type[Record],
    content: bytes,
    refuse: Refuse,
    *,
    what: str,
    cure: str,
    noun: str,
) -> Record:
    """Returns the record in a JSON file.

    Args:
        kind: the class of the record, checked by pydantic.
        content: the bytes of the file.
        refuse: makes the error.
        what: names the file in the error.
        cure: ends the message.
        noun: what the file should be.
    """
    parse_json(content, refuse, what=what, cure=cure)  # which refuses numbers that are not finite
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise refuse(f"{what} is no {noun}: {field}: {first['msg']}{cure}") from None


def with_weights(
    make: Callable[[], Module], parts: Parts, refuse: Refuse, *, cure: str, misfit: str
) -> Module:
    """Returns the module that `make` makes with the weights of `parts`, ready to predict.

    The weights are first compared with a module that takes no memory, so that a record which claims
    a huge one costs nothing.

    Args:
        make: makes the module that the record describes.
        parts: the files.
        refuse: makes the error where the weights are none, or not those of such a module.
        cure: ends the message where the weights are none.
        misfit: ends the message where they are of another module.
    """
    state = tensors_of(parts.weights, refuse, what=f"{parts.where}/{FILE}", cure=cure)
    try:
        with torch.device("meta"):
            expected = make().state_dict()
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError) as error:
        raise refuse(
            f"{parts.where} cannot be made as its record says ({_line(error)}){misfit}"
        ) from None
    check_fit(expected, state, refuse, what=parts.where, cure=misfit)
    module = make()
    module.load_state_dict(state)
    return module.eval()


def tensors_of(content: bytes, refuse: Refuse, *, what: str, cure: str) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        refuse: the header and the bytes of the file do not fit, or a number is not finite.
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
        raise refuse(f"{what} is no safetensors file ({_line(error)}){cure}") from None
    return _checked(tensors, refuse, what=what, cure=cure)


def checkpoint_of(content: bytes, refuse: Refuse, *, what: str) -> dict[str, Tensor]:
    """Returns the tensors by name of a checkpoint that `torch.save` wrote.

    No code of the checkpoint is run, and no more memory is asked for than it has bytes.

    Raises:
        refuse: it has another form, it holds anything but tensors by name, it is packed, its
            tensors claim more bytes than it has, or a number is not finite.
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
        raise refuse(
            f"{what} is neither a safetensors file nor a checkpoint of tensors alone"
            f" ({_line(error)}); other pickles are not read, for they can run code: save its"
            " tensors with safetensors.torch.save_file"
        ) from None
    return _checked(tensors, refuse, what=what, cure=cure)


def check_fit(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    refuse: Refuse,
    *,
    what: str,
    cure: str,
) -> None:
    """Refuses weights `state` whose names, shapes and sorts of number (whole or not) are not those
    of `expected`.
    """
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    both = sorted(expected.keys() & state.keys())
    shapes = [name for name in both if expected[name].shape != state[name].shape]
    sorts = [
        name
        for name in both
        if expected[name].is_floating_point() != state[name].is_floating_point()
    ]
    if missing or extra or shapes or sorts:
        names = [[name[:80] for name in group[:2]] for group in (missing, extra, shapes + sorts)]
        raise refuse(
            f"the weights of {what} do not fit: {len(missing)} tensors missing {names[0]},"
            f" {len(extra)} unknown {names[1]}, {len(shapes)} of another shape, {len(sorts)} of"
            f" another sort of number {names[2]}{cure}"
        )


def _unpickled(content: bytes, device: torch.device) -> dict[str, Tensor]:
    """Returns the tensors by name that a zip file of `torch.save` holds, on `device`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(
        member.file_size for member in members
    ) > len(content):
        raise ValueError("it is packed, and what it unpacks to is not known")
    state = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
    for key in ("state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"it holds no tensors by name, but {type(state).__name__}")
    for tensor in state.values():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _NUMBERS:
            raise ValueError(f"it holds a tensor of {tensor.dtype}, {tensor.layout}")
    return state


def _needs(tensor: Tensor) -> int:
    """Returns the bytes of storage up to a tensor's last number, or of all its numbers where one
    number of the storage stands for many.
    """
    if not tensor.numel():
        return 0
    last = tensor.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return max(int(last) + 1, tensor.numel()) * tensor.element_size()


def _checked(
    tensors: dict[str, Tensor], refuse: Refuse, *, what: str, cure: str
) -> dict[str, Tensor]:
    """Returns `tensors`, or refuses a tensor that holds other things than finite numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _NUMBERS:
            raise refuse(
                f"{what}: the tensor {name[:80]} holds {tensor.dtype}, not plain numbers{cure}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise refuse(f"{what}: the tensor {name[:80]} holds numbers that are not finite{cure}")
    return tensors


def _line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's name where it has none."""
    return str(error).partition("\n")[0][:300] or type(error).__name__
