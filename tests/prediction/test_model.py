import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnm.errors import HnmError, PredictionError
from hnm.files import digest_of
from hnm.prediction.model import FILES, ModelRecord, read_model, read_record, write_model
from tests.support import model as tiny


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


class Canary:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_model_folder_holds_json_and_safetensors_alone(folder: Path) -> None:
    assert {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } == set(FILES)


def test_a_model_is_read_as_it_was_written(folder: Path) -> None:
    model = read_model(folder, "round 1")
    assert model.record == ModelRecord(**tiny.RECORD)
    assert (model.name, model.digest) == ("round 1", digest_of(folder))
    assert model.head.mean.sum() > 0


def test_equal_models_have_equal_bytes(folder: Path, tmp_path: Path) -> None:
    assert digest_of(tiny.make_model(tmp_path / "again")) == digest_of(folder)
    assert digest_of(tiny.make_model(tmp_path / "other", threshold=0.5)) != digest_of(folder)


@pytest.mark.parametrize(
    "name", [*FILES, "python_model.pkl", "encoder/extra.safetensors", "head/pytorch_model.bin"]
)
def test_a_pickle_is_refused_without_running_whatever_its_name(
    folder: Path, tmp_path: Path, name: str
) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))  # the canary sings
    canary.unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(HnmError, match=str(Path(name).parent) if name in FILES[1:] else name):
        read_model(folder, "x")
    assert not canary.exists()


def test_an_unknown_file_is_named(folder: Path) -> None:
    (folder / "head" / "code.py").write_text("raise SystemExit")
    with pytest.raises(
        PredictionError,
        match=r"model holds head/code\.py, which no model of hnm has; it is not read",
    ):
        read_record(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "head" / "head.json").unlink()
    with pytest.raises(
        PredictionError, match=r"is no model folder: it lacks head/head\.json; `hnm promote`"
    ):
        read_record(folder)


def test_a_record_of_another_form_is_refused(folder: Path) -> None:
    record = folder / "model.json"
    record.write_text(record.read_text().replace('"form": 1', '"form": 2'))
    with pytest.raises(
        PredictionError,
        match=r"model\.json is no record of a model: form: Input should be 1; take the folder anew",
    ):
        read_record(folder)


def test_an_encoder_without_weights_makes_no_model(tmp_path: Path) -> None:
    encoder, head = tiny.make_parts(tmp_path / "parts")
    with pytest.raises(
        PredictionError, match=r"the encoder has no weights\.safetensors, but a model needs it"
    ):
        write_model(
            ModelRecord(**tiny.RECORD),
            {"encoder.json": encoder["encoder.json"]},
            head,
            tmp_path / "model",
        )


def a_link(folder: Path, name: str) -> None:
    (folder / name).replace(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def a_pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


@pytest.mark.parametrize("make", [a_link, a_pipe, a_folder])
@pytest.mark.parametrize("name", FILES)
def test_links_pipes_and_folders_in_the_place_of_files_are_refused_and_do_not_hang(
    folder: Path, name: str, make: Callable[[Path, str], None]
) -> None:
    make(folder, name)
    for read in (read_record, lambda path: read_model(path, "x")):
        with pytest.raises(
            PredictionError,
            match=(
                rf"model holds {name}, which is no regular file but a link, a folder or a pipe;"
                r" copy the file itself"
            ),
        ):
            read(folder)


def test_a_linked_folder_and_a_pipe_of_another_name_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "head" / "pipe")
    with pytest.raises(PredictionError, match=r"holds head/pipe, which no model of hnm has"):
        read_record(folder)
    (folder / "head" / "pipe").unlink()
    a_link(folder, "head")
    with pytest.raises(
        PredictionError,
        match=r"model holds a link, head, in the place of a folder; copy what it leads to there",
    ):
        read_record(folder)


def test_what_is_no_folder_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PredictionError, match=r"model\.json is no folder; name the folder that `hnm export` wrote"
    ):
        read_record(folder / "model.json")
    with pytest.raises(
        PredictionError,
        match=(
            r"nowhere is no model folder: it lacks encoder/encoder\.json,"
            r" encoder/weights\.safetensors"
        ),
    ):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"compute": {"threads": 1000}},
            r"compute\.threads: Input should be less than or equal to 256",
        ),
        (
            {"compute": {"processes": 1000}},
            r"compute\.processes: Input should be less than or equal to 256",
        ),
        (
            {"tiles": {"slide_seconds": 1e6}},
            r"tiles\.slide_seconds: Input should be less than or equal to 604800",
        ),
        (
            {"tiles": {"read_seconds": 1e-9}},
            r"tiles\.read_seconds: Input should be greater than or equal to 1",
        ),
        ({"tiles": {"mpp": 1e-9}}, r"tiles\.mpp: Input should be greater than or equal to 0\.05"),
        ({"tissue": {"mpp": 1e-9}}, r"tissue\.mpp: Input should be greater than or equal to 0\.5"),
        (
            {"embed": {"batch_tiles": 10**6}},
            r"embed\.batch_tiles: Input should be less than or equal to 65536",
        ),
        (
            {"embed": {"batch_tiles": 60_000}, "tiles": {"tile_px": 4096}},
            r"embed\.batch_tiles=60000 tiles of 4096 px are 1006632960000 px at once",
        ),
        (
            {"tiles": {"tile_px": 10**6}},
            r"tiles\.tile_px: Input should be less than or equal to 4096",
        ),
        ({"threshold": "NaN"}, r"threshold: "),
        ({"classes": ["x", "x"]}, r"both classes are called 'x'"),
        (
            {"classes": ["x", "\u001b[31m"]},
            r"'classes\.1': '\\x1b\[31m' is no text of 1 to 255 characters that can be printed",
        ),
        ({"cohort": "c" * 300}, r"'cohort': 'c{80}' is no text of 1 to 255 characters"),
        ({"versions": {"data": "\n"}}, r"'versions\.data': '\\n' is no text"),
        ({"more": 1}, r"more: Extra inputs are not permitted"),
    ],
)
def test_a_record_that_asks_for_more_than_any_model_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    record = json.loads((folder / "model.json").read_text())
    for section, value in change.items():
        record[section] = {**record[section], **value} if isinstance(value, dict) else value
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(
        PredictionError,
        match=rf"model\.json is no record of a model: {message}.*; take the folder anew",
    ):
        read_record(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"validation": {"auc": NaN}}',
        '{"validation": {"auc": 1e999}}',
        '{"form": ' + "9" * 5000 + "}",
        "\xff",
    ],
)
def test_a_record_that_is_no_json_object_is_one_error(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PredictionError, match=r"model\.json is .*; take the folder anew"):
        read_record(folder)


def test_a_head_of_other_features_is_refused(folder: Path, tmp_path: Path) -> None:
    head = json.loads((folder / "head" / "head.json").read_text())
    weights = folder / "head" / "weights.safetensors"
    width = head["features"]
    save_file(
        {
            name: tensor[..., : width - 1] if tensor.shape[-1] == width else tensor
            for name, tensor in load_file(weights).items()
        },
        tmp_path / "w",
    )
    shutil.copy(tmp_path / "w", weights)
    (folder / "head" / "head.json").write_text(json.dumps({**head, "features": width - 1}))
    with pytest.raises(
        PredictionError,
        match=(
            rf"its encoder gives {width} numbers a tile, but its head takes {width - 1}; take the"
            r" folder anew"
        ),
    ):
        read_model(folder, "x")


def test_the_digest_is_of_the_bytes_that_were_read_though_the_folder_is_exchanged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.make_model(tmp_path / "other", threshold=0.5)
    before, original = digest_of(folder), tiny_reader()

    def exchanging(path: Path, file: str) -> bytes:
        content = original(path, file)
        if file == FILES[-1]:  # all are read: what follows must not look at the folder again
            shutil.rmtree(folder)
            shutil.copytree(other, folder)
        return content

    monkeypatch.setattr("hnm.prediction.model._bytes_of", exchanging)
    model = read_model(folder, "x")
    assert model.digest == before != digest_of(folder) and model.record.threshold == 0.375


def tiny_reader() -> Callable[[Path, str], bytes]:
    from hnm.prediction.model import _bytes_of

    return _bytes_of


def test_weights_with_numbers_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "encoder" / "weights.safetensors"
    state = load_file(weights)
    first = next(name for name, tensor in state.items() if tensor.is_floating_point())
    save_file({**state, first: torch.full_like(state[first], float("nan"))}, tmp_path / "w")
    shutil.copy(tmp_path / "w", weights)
    with pytest.raises(
        HnmError,
        match=(
            rf"encoder/weights\.safetensors: the tensor {first} holds numbers that are not finite"
        ),
    ):
        read_model(folder, "x")
