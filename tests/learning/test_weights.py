"""Weights from anybody: what is claimed is compared with what there is, and nothing is run."""

import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hnm import params
from hnm.errors import EncoderError, HeadError, HnmError
from hnm.learning.encoder import encoder_digest, load_encoder, make_encoder, save_encoder
from hnm.learning.heads import load_head, make_head, save_head
from hnm.learning.weights import checkpoint_of, tensors_of

TINY = params.Encoder(name="test_resnet", weights="random")
HEAD = params.Head(kind="abmil", attention_features=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder in `encoder`, a head in `head`."""
    encoder = make_encoder(TINY)
    save_encoder(encoder, tmp_path / "encoder")
    save_head(make_head(encoder.record.features, HEAD), HEAD, tmp_path / "head")
    return tmp_path


def with_record(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def safetensors_of(header: dict[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "hf-hub:stranger/model"},
            r"name: String should match pattern",
        ),
        ({"name": "local-dir:/tmp/model"}, r"name: String should match pattern"),
        ({"name": "../model"}, r"name: String should match pattern"),
        ({"name": "no_such_model"}, r"encoder\.json: name='no_such_model' is no timm model"),
        ({"name": ["resnet18"]}, r"name: Input should be a valid string"),
        ({"mean": [0.5, 0.5]}, r"mean\.2: Field required"),
        ({"mean": [0.5, 0.5, True]}, r"mean\.2: Input should be a valid number"),
        ({"mean": "abc"}, r"mean: Input should be a valid array"),
        ({"std": [0.5, 0.5, 0]}, r"std\.2: Input should be greater than or equal to 0\.000001"),
        ({"features": -1}, r"features: Input should be greater than or equal to 1"),
        ({"features": 10**30}, r"features: Input should be less than or equal to 65536"),
        ({"features": 3}, r"features=3, but test_resnet gives \d+; bring it anew"),
        ({"weights": 7}, r"weights: Input should be a valid string"),
        ({"more": 1}, r"is no encoder record: more: "),
        (
            {"name": "vit_giant_patch14_224"},
            r"the weights of .*encoder do not fit: \d+ tensors missing",
        ),
    ],
)
def test_a_record_that_no_encoder_has_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with_record(folder / "encoder" / "encoder.json", **changes)
    with pytest.raises(EncoderError, match=message):
        load_encoder(folder / "encoder")


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"mean": 1e999}', '{"mean": NaN}', "[" * 100_000, "", "\xff"]
)
def test_a_record_that_is_no_json_object_is_one_error(folder: Path, text: str) -> None:
    for part, name, load in (
        ("encoder", "encoder.json", load_encoder),
        ("head", "head.json", load_head),
    ):
        (folder / part / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(HnmError, match=rf"{name} (is|holds).*; bring it anew"):
            load(folder / part)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 10**12}, r"features: Input should be less than or equal to 65536"),
        ({"features": "8"}, r"features: Input should be a valid integer"),
        ({"classes": 3}, r"is no head record: classes: Extra inputs are not permitted"),
        ({"head": {"kind": "stranger"}}, r"is no head record: head\.kind: Input should be"),
        (
            {"head": {"kind": "abmil", "attention_features": 2**40}},
            r"head\.attention_features: Input should be less than or equal to",
        ),
        ({"head": 5}, r"is no head record: head"),
        ({"code": "x"}, r"is no head record: code: Extra inputs are not permitted"),
    ],
)
def test_a_record_that_no_head_has_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with_record(folder / "head" / "head.json", **changes)
    with pytest.raises(HeadError, match=message):
        load_head(folder / "head")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 2**40) + b"{}",
        safetensors_of({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}),
        safetensors_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors_of({"w": {"dtype": "X99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        safetensors_of(
            {
                "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            bytes(4),
        ),
        safetensors_of({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors_of({"w": 3}, bytes(4)),
    ],
)
def test_a_safetensors_file_whose_header_lies_is_one_error(folder: Path, content: bytes) -> None:
    for part, load, kind in (
        ("encoder", load_encoder, EncoderError),
        ("head", load_head, HeadError),
    ):
        (folder / part / "weights.safetensors").write_bytes(content)
        with pytest.raises(
            kind, match=rf"{part}/weights\.safetensors is no safetensors file \(.+\); bring it anew"
        ):
            load(folder / part)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "the tensor w holds numbers that are not finite"),
        (
            torch.tensor([1.0, float("-inf")], dtype=torch.bfloat16),
            "the tensor w holds numbers that are not finite",
        ),
        (torch.tensor([1 + 2j]), r"the tensor w holds torch\.complex64, not plain numbers"),
    ],
)
def test_numbers_that_are_none_are_named(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        tensors_of(save({"w": tensor}), EncoderError, what="f", cure="")


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    weights = folder / "head" / "weights.safetensors"
    state = tensors_of(weights.read_bytes(), HeadError, what="", cure="")
    weights.write_bytes(
        save({name: tensor.long() if name == "mean" else tensor for name, tensor in state.items()})
    )
    with pytest.raises(HeadError, match=r"1 of another sort of number \['mean'\]"):
        load_head(folder / "head")


@pytest.mark.parametrize("name", ["encoder.json", "weights.safetensors"])
def test_a_folder_or_a_named_pipe_in_the_place_of_a_file_is_refused_and_does_not_hang(
    folder: Path, name: str
) -> None:
    path = folder / "encoder" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EncoderError, match=rf"{name} is no regular file; bring it anew"):
        load_encoder(folder / "encoder")
    with pytest.raises(EncoderError, match=rf"{name} does not exist, or is no regular file"):
        encoder_digest(folder / "encoder")
    path.unlink()
    path.mkdir()
    with pytest.raises(EncoderError, match=rf"{name} is no regular file; bring it anew"):
        load_encoder(folder / "encoder")


def test_an_encoder_knows_the_digest_of_the_bytes_that_it_is_made_of(folder: Path) -> None:
    assert load_encoder(folder / "encoder").digest == encoder_digest(folder / "encoder")
    assert make_encoder(TINY).digest is None


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def zipped(
    compression: int = zipfile.ZIP_STORED,
    change: Callable[[str, bytes], bytes] = lambda name, content: content,
) -> bytes:
    stream, packed = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(500_000)}, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for member in source.infolist():
            target.writestr(
                member.filename,
                change(member.filename, source.read(member)),
                compress_type=compression,
            )
    return packed.getvalue()


def strided(name: str, content: bytes) -> bytes:
    """The tensor has 2**40 numbers, all the first of its storage."""
    if not name.endswith("data.pkl"):
        return content
    claimed = (500_000).to_bytes(4, "little")
    size = content.rindex(b"J" + claimed)
    return content[:size] + b"\x8a\x06" + (2**40).to_bytes(6, "little") + content[size + 5 :]


def test_what_is_no_checkpoint_of_tensors_is_refused_without_running_anything(
    tmp_path: Path,
) -> None:
    canary = tmp_path / "canary"
    hostile = pickle.dumps(Canary(canary))
    pickle.loads(hostile)  # the canary sings
    canary.unlink()
    numbers, legacy, tar = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(numbers, x=np.array([Canary(canary)], dtype=object))
    torch.save({"w": torch.zeros(3)}, legacy, _use_new_zipfile_serialization=False)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    contents = {
        "pickle": hostile,
        "npz": numbers.getvalue(),
        "legacy": legacy.getvalue(),
        "tar": tar.getvalue(),
        "packed": zipped(zipfile.ZIP_DEFLATED),
        "hostile pickle in a checkpoint": zipped(
            change=lambda name, content: hostile if name.endswith("data.pkl") else content
        ),
        "claims more": zipped(change=strided),
        "one number a million million times": _saved({"w": torch.zeros(1).expand(2**40)}),
        "names that are numbers": _saved({1: torch.zeros(2)}),
        "sparse": _saved({"w": torch.zeros(2, 2).to_sparse()}),
        "empty": b"",
    }
    for what, content in contents.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(
            EncoderError,
            match=(
                rf"{what} is neither a safetensors file nor a checkpoint of tensors alone \(.+\);"
                r" other pickles are not read"
            ),
        ):
            checkpoint_of(content, EncoderError, what=what)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10, what
    assert not canary.exists()
    assert checkpoint_of(zipped(), EncoderError, what="whole")["w"].shape == (500_000,)


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def test_a_checkpoint_with_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(EncoderError, match="the tensor w holds numbers that are not finite"):
        checkpoint_of(_saved({"w": torch.tensor([float("inf")])}), EncoderError, what="f")
