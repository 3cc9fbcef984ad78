"""Round 0's encoder from files: which tiles SimCLR sees, and what pretrained weights do without."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.encoder import (
    TileEncoder,
    encoder_digest,
    load_encoder,
    make_encoder,
    save_encoder,
)
from hnm.loop import encoder as loop
from hnm.loop.packs import Packs
from hnm.loop.paths import EncoderFiles
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack
from tests.support.exactness import assert_close, assert_same_weights

SECTION = params.Encoder(name="test_resnet", weights="random")


def make_cohort(folder: Path) -> None:
    """Slides a and c are train, b is not, and d, in quarantine, has no pack; every tile of a slide
    has a shade of its own.
    """
    for number, (slide_id, count) in enumerate({"a": 3, "b": 4, "c": 2}.items()):
        shades = [
            np.full((32, 32, 3), 20 + 60 * number + 10 * tile, np.uint8) for tile in range(count)
        ]
        tiles = [
            PackTile(32 * tile, 0, 1.0, encode(shade, 95)) for tile, shade in enumerate(shades)
        ]
        write_pack(
            folder / "packs" / f"{slide_id}.h5",
            tiles,
            slide_id=slide_id,
            mpp=0.5,
            tile_px=32,
            side=32,
            planned=count,
        )
    (folder / "train.csv").write_text("slide_id,label\na,0\nc,1\nd,1\n")


def run(folder: Path, **changes: object) -> list[dict[str, float]]:
    simclr = params.Simclr(
        epochs=1, batch_tiles=4, projection_features=8, max_tiles=int(changes.pop("max_tiles", 9))
    )
    files = EncoderFiles(
        packs=folder / "packs",
        train_labels=folder / "train.csv",
        weights=folder / "weights",
        folder=folder / "encoder",
        mined=folder / "mined.parquet",
    )
    return loop.first_encoder(
        files,
        encoder=SECTION.model_copy(update=changes),
        simclr=simclr,
        compute=params.Compute(threads=1),
        on_epoch=lambda epoch, metrics: None,
    )


def test_pretrained_weights_read_no_tile_and_have_no_history(tmp_path: Path) -> None:
    assert run(tmp_path) == []
    assert [path.name for path in sorted((tmp_path / "encoder").iterdir())] == [
        "encoder.json",
        "weights.safetensors",
    ]
    assert torch.equal(
        load_encoder(tmp_path / "encoder").backbone.state_dict()["layer1.0.conv1.weight"],
        make_encoder(SECTION).backbone.state_dict()["layer1.0.conv1.weight"],
    )


def test_simclr_trains_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        make_cohort(tmp_path / name)
        (row,) = run(tmp_path / name, source="simclr")
        assert (tmp_path / name / "encoder" / "history.csv").read_text().startswith(
            "epoch,loss,spread,learning_rate\n"
        ) and np.isfinite(row["loss"])
        digests.append(encoder_digest(tmp_path / name / "encoder"))
    run(tmp_path)
    assert digests[0] == digests[1] != encoder_digest(tmp_path / "encoder")


@pytest.mark.parametrize(("max_tiles", "count"), [(9, 5), (3, 3)])
def test_simclr_sees_train_tiles_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_tiles: int, count: int
) -> None:
    make_cohort(tmp_path)
    seen: list[int] = []

    def fit(encoder: object, read: object, tiles: int, *others: object) -> list[dict[str, float]]:
        seen.extend(read(np.arange(tiles)).mean(axis=(1, 2, 3)).round().astype(int).tolist())  # type: ignore[operator]
        return [{"epoch": 1, "loss": 0.0}]

    monkeypatch.setattr(loop, "fit_simclr", fit)
    run(tmp_path, source="simclr", max_tiles=max_tiles)
    assert len(seen) == count and set(seen) <= {20, 30, 40, 140, 150}


def test_tiles_come_in_the_order_asked_for_and_each_pack_is_opened_as_hdf5_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cohort(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("hnm.loop.packs.Pack", lambda path: opened.append(path.stem) or Pack(path))
    packs = Packs(tmp_path / "packs")
    for _ in range(3):
        pixels = packs.tiles(np.array(["c", "a", "b", "a"]), np.array([1, 2, 0, 0]))
        assert pixels.mean(axis=(1, 2, 3)).round().tolist() == [150, 40, 80, 20]
    assert opened == ["a", "b", "c"]


def test_an_encoder_of_another_project_is_round_0_with_its_normalisation_and_provenance(
    tmp_path: Path,
) -> None:
    other = make_encoder(SECTION.model_copy(update={"seed": 5}))
    folder = tmp_path / "weights" / "encoder.2"
    save_encoder(
        TileEncoder(other.backbone, dataclasses.replace(other.record, mean=(0.25, 0.5, 0.75))),
        folder,
    )
    assert run(tmp_path, weights=str(folder)) == []
    own, tiles = (
        load_encoder(tmp_path / "encoder"),
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    )
    assert (
        own.record.mean == (0.25, 0.5, 0.75)
        and own.record.weights == f"encoder {encoder_digest(folder)}"
    )
    with torch.inference_mode():
        assert_close(own(tiles), load_encoder(folder)(tiles))
        assert not torch.allclose(own(tiles), other.eval()(tiles), atol=1e-2)


def test_a_folder_that_is_no_such_encoder_is_refused(tmp_path: Path) -> None:
    save_encoder(make_encoder(SECTION), tmp_path / "weights" / "imported")
    with pytest.raises(
        EncoderError,
        match=(
            r"imported holds an encoder 'test_resnet', but encoder\.name='resnet18'; set"
            r" encoder\.name to it"
        ),
    ):
        run(tmp_path, name="resnet18", weights=str(tmp_path / "weights" / "imported"))
    (tmp_path / "weights" / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"empty/encoder\.json"):
        run(tmp_path, weights=str(tmp_path / "weights" / "empty"))
    assert not (tmp_path / "encoder").exists()


def test_weights_that_could_change_unseen_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_encoder(SECTION.model_copy(update={"seed": 5}))
    save_encoder(made, tmp_path / "models" / "old")
    file = tmp_path / "models" / "old" / "weights.safetensors"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "linked").symlink_to(tmp_path / "models" / "old")
    (tmp_path / "weights" / "own.safetensors").symlink_to(file)
    check = partial(loop.check_place, weights=Path("weights"))
    for path in (
        "models/old",
        "weights/linked",
        "weights/linked/weights.safetensors",
        "models/old/weights.safetensors",
        "weights/../other.bin",
    ):
        with pytest.raises(
            EncoderError,
            match=(
                rf"^encoder\.weights={path} does not lie in weights/, so dvc repro would not notice"
                r" when it changes; bring it there \("
            ),
        ):
            check(SECTION.model_copy(update={"weights": path}))
    with pytest.raises(
        EncoderError,
        match=(
            rf"\(ln -s {file} weights/\) and set encoder\.weights to weights/weights\.safetensors$"
        ),
    ):
        check(SECTION.model_copy(update={"weights": str(file)}))
    with pytest.raises(
        EncoderError,
        match=rf"\(cp -r {file.parent} weights/\) and set encoder\.weights to weights/old$",
    ):
        check(SECTION.model_copy(update={"weights": str(file.parent)}))
    check(SECTION)
    assert run(tmp_path, weights=str(tmp_path / "weights" / "own.safetensors")) == []
    assert_same_weights(load_encoder(tmp_path / "encoder"), made)
