"""What learning is given: features, weights and mined sets that are not what they should be, and a
machine that is too small.
"""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hnm.errors import EncoderError, HnmError, MachineError, TableError
from hnm.files import write_json
from hnm.learning import features as feature_files
from hnm.learning.embed import embed_tiles
from hnm.tables import LABELS, MINED, TILE_SCORES
from tests.support.stages import Project, outs_of


def refusal(project: Project, stage: str) -> str:
    """The one line of a stage that fails."""
    done = project.run(stage)
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert done.code == 1 and lines[-1].startswith("error: ") and "Traceback" not in done.err, (
        done.err
    )
    return lines[-1]


def replace(path: Path, content: bytes) -> None:
    """Another file under the same name; what is linked to the old one stays."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["torn", "empty", "nan", "none", "short"])
def test_bad_features(project: Project, undisturbed: Project, how: str) -> None:
    """Features of the folder, and of the store: named, and the cure that is named cures."""
    path = project.folder / "data" / "features" / "0" / "demo-001.h5"
    content = path.read_bytes()
    rows = feature_files.read(path)
    if how in ("torn", "empty"):
        replace(path, content[: len(content) // 2 if how == "torn" else 0])
    elif how == "none":
        path.unlink()
    else:
        path.unlink()
        with h5py.File(path, "w") as file:
            wrong = np.full_like(rows, np.nan) if how == "nan" else rows[:-1]
            file.create_dataset("features", data=wrong.astype(np.float16))
            file.create_dataset("coords", data=np.zeros((len(wrong), 2), np.int64))
    assert "demo-001" in refusal(project, "head@0")
    project.clear("embed@0")
    project.succeed("embed@0", "head@0")
    assert project.bytes_of("data/features/0", "data/scores/0") == undisturbed.bytes_of(
        "data/features/0", "data/scores/0"
    )


def test_bad_features_in_the_store(project: Project, undisturbed: Project) -> None:
    """A kept file that is damaged is never linked: `embed` makes it again, and `head` is what it
    was.
    """
    for path in (project.folder / ".hnm" / "store" / "features").rglob("[!.]*.h5"):
        replace(path, path.read_bytes()[:-100])
    project.clear("embed@0")
    project.succeed("embed@0", "head@0")
    assert project.bytes_of("data/features/0", "data/scores/0") == undisturbed.bytes_of(
        "data/features/0", "data/scores/0"
    )


def test_weights_changed_under_one_name(project: Project, undisturbed: Project) -> None:
    """A file of weights that is replaced by another of the same name gives other features, never
    those of the old one.
    """
    weights = project.folder / "weights" / "mine.safetensors"
    shutil.copy(project.folder / "data" / "encoders" / "0" / "weights.safetensors", weights)
    project.set(encoder={"weights": "weights/mine.safetensors"})
    project.succeed("encoder", "embed@0")
    first = project.bytes_of("data/features/0")
    state = load_file(weights)
    save_file(
        {
            name: tensor + 0.5 if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        weights,
    )
    for stage in ("encoder", "embed@0"):
        project.clear(stage)
    project.succeed("encoder", "embed@0")
    second = project.bytes_of("data/features/0")
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


def test_empty_mined_set(project: Project) -> None:
    project.set(mining={"threshold": 0.999999})
    line = refusal(project, "mine@1")
    assert "mining.threshold=0.999999" in line and "best" in line
    MINED.write(MINED.empty(), project.folder / "data" / "mined" / "1" / "empty.parquet")
    replace(
        project.folder / "data" / "mined" / "1" / "mined.parquet",
        (project.folder / "data" / "mined" / "1" / "empty.parquet").read_bytes(),
    )
    assert "mined.parquet is empty" in refusal(project, "finetune@1")


def test_ties_and_k_too_large(project: Project, undisturbed: Project) -> None:
    """All scores equal: the tiles go by slide and number, whatever the rows' order; K beyond a
    slide's tiles takes them all.
    """
    project.set(ranking={"top_k": 100_000}, head={"top_k": 100_000})
    project.succeed("head@0")
    for name in ("tiles", "cross_fitted"):
        path = project.folder / "data" / "scores" / "0" / f"{name}.parquet"
        table = TILE_SCORES.read(path)
        if len(table):
            TILE_SCORES.write(table.assign(score=np.float32(0.75), logit=np.float32(1.0)), path)
    project.succeed("mine@1")
    first = project.bytes_of("data/mined/1")
    path = project.folder / "data" / "scores" / "0" / "tiles.parquet"
    shuffled = TILE_SCORES.read(path).sample(frac=1.0, random_state=3)
    path.unlink()
    shuffled.to_parquet(path, index=False)
    project.clear("mine@1")
    project.succeed("mine@1")
    assert project.bytes_of("data/mined/1") == first


def test_mining_outside_train(project: Project) -> None:
    """Neither a label nor a score outside train is mined: every mined slide is of train, with the
    role of its label.
    """
    train = LABELS.read(project.folder / "data" / "cohort" / "labels" / "train.csv").set_index(
        "slide_id"
    )["label"]
    mined = MINED.read(project.folder / "data" / "mined" / "1" / "mined.parquet")
    assert set(mined["slide_id"]) <= set(train.index)
    assert all(
        train[slide_id] == (role == "positive")
        for slide_id, role in zip(mined["slide_id"], mined["role"], strict=True)
    )
    before = project.bytes_of("data/mined/1/mined.parquet")
    path = project.folder / "data" / "scores" / "0" / "tiles.parquet"
    table = TILE_SCORES.read(path)
    path.unlink()
    outside = ~table["slide_id"].isin(train.index)
    assert outside.any()
    table.loc[outside, ["score", "logit"]] = np.float32(0.999), np.float32(9.0)
    TILE_SCORES.write(table, path)
    project.clear("mine@1")
    project.succeed("mine@1")
    after = MINED.read(project.folder / "data" / "mined" / "1" / "mined.parquet")
    assert set(after["slide_id"]) <= set(train.index)
    assert (
        after.drop(columns="scorer").equals(pd.DataFrame(mined.drop(columns="scorer"))) and before
    )


@pytest.mark.parametrize("section", ["head", "finetune"])
def test_nan_loss(project: Project, section: str) -> None:
    project.set(**{section: {"learning_rate": 1e30, "epochs": 4}})
    stage = f"{section}@{int(section == 'finetune')}"
    project.clear(stage)
    line = refusal(project, stage)
    assert ("finite" in line or "nan" in line) and f"{section}.learning_rate" in line
    assert not [
        out for out in outs_of(stage) if (project.folder / out / "weights.safetensors").exists()
    ]


def test_out_of_gpu_memory() -> None:
    """As a GPU says it; a batch is halved until it fits, and a single tile that does not fit is an
    error of the machine or of the encoder.
    """
    from hnm.learning.compute import CPU
    from hnm.learning.encoder import make_encoder
    from hnm.params import Encoder

    encoder = make_encoder(Encoder(name="test_resnet", weights="random"))
    seen = []
    forward = encoder.forward

    def small(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        if len(tiles) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(tiles)

    encoder.forward = small  # type: ignore[method-assign]
    tiles = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    (rows,) = embed_tiles(
        encoder,
        [7],
        lambda slide, first, end: tiles[first:end],
        batch_tiles=7,
        machine=CPU,
        compiled=False,
    )
    assert rows.shape == (7, encoder.record.features) and seen[0] == 7 and min(seen) <= 2
    encoder.forward = lambda tiles: (_ for _ in ()).throw(
        torch.cuda.OutOfMemoryError("CUDA out of memory")
    )  # type: ignore[method-assign]
    with pytest.raises((MachineError, EncoderError), match="memory"):
        list(
            embed_tiles(
                encoder,
                [7],
                lambda slide, first, end: tiles[first:end],
                batch_tiles=7,
                machine=CPU,
                compiled=False,
            )
        )


def test_an_encoder_whose_record_and_weights_do_not_fit(project: Project) -> None:
    """Half of one training and half of another, as two writers would leave it."""
    folder = project.folder / "data" / "encoders" / "1"
    write_json(
        {
            "name": "test_vit",
            "weights": "random",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "features": 64,
        },
        folder / "encoder.json",
    )
    assert "encoders/1" in refusal(project, "embed@1")


def test_a_table_of_another_index(project: Project) -> None:
    """Scores of tiles that the features do not have."""
    path = project.folder / "data" / "mined" / "1" / "mined.parquet"
    table = MINED.read(path)
    path.unlink()
    MINED.write(table.assign(tile=np.int32(100_000)), path)
    with pytest.raises(HnmError):
        MINED.read(path.with_name("none.parquet"))
    assert "error: " in refusal(project, "finetune@1")
    with pytest.raises(TableError):
        feature_files.read(
            project.folder / "data" / "features" / "0" / "demo-001.h5", np.array([100_000])
        )
