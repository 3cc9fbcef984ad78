import pickle
import shutil
from pathlib import Path

import pytest
import tiny_model as tiny

from hnm.errors import HnmError, PredictionError
from hnm.files import digest_of
from hnm.prediction.model import FILES, ModelRecord, read_model, read_record, write_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


class Canary:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_model_folder_holds_json_and_safetensors_alone(folder: Path) -> None:
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(FILES)


def test_a_model_is_read_as_it_was_written(folder: Path) -> None:
    model = read_model(folder, "round 1")
    assert model.record == ModelRecord(**tiny.RECORD)
    assert (model.name, model.digest) == ("round 1", digest_of(folder))
    assert model.head.mean.sum() > 0


def test_equal_models_have_equal_bytes(folder: Path, tmp_path: Path) -> None:
    assert digest_of(tiny.make_model(tmp_path / "again")) == digest_of(folder)
    assert digest_of(tiny.make_model(tmp_path / "other", threshold=0.5)) != digest_of(folder)


@pytest.mark.parametrize("name", [*FILES, "python_model.pkl", "encoder/extra.safetensors", "head/pytorch_model.bin"])
def test_a_pickle_is_refused_without_running_whatever_its_name(folder: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))  # the canary sings
    canary.unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(HnmError, match=str(Path(name).parent) if name in FILES[1:] else name):
        read_model(folder, "x")
    assert not canary.exists()


def test_an_unknown_file_is_named(folder: Path) -> None:
    (folder / "head" / "code.py").write_text("raise SystemExit")
    with pytest.raises(PredictionError, match=r"model holds head/code\.py, which no model of hnm has; it is not read"):
        read_record(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "head" / "head.json").unlink()
    with pytest.raises(PredictionError, match=r"is no model folder: it lacks head/head\.json; `hnm promote`"):
        read_record(folder)


def test_a_record_of_another_form_is_refused(folder: Path) -> None:
    record = folder / "model.json"
    record.write_text(record.read_text().replace('"form": 1', '"form": 2'))
    with pytest.raises(PredictionError, match=r"model\.json is no record of a model: form: Input should be 1; take the folder anew"):
        read_record(folder)


def test_an_encoder_without_weights_makes_no_model(tmp_path: Path) -> None:
    encoder, head = tiny.make_parts(tmp_path / "parts")
    with pytest.raises(PredictionError, match=r"the encoder has no weights\.safetensors, but a model needs it"):
        write_model(ModelRecord(**tiny.RECORD), {"encoder.json": encoder["encoder.json"]}, head, tmp_path / "model")
