"""Fine-tuning from files: what an empty mined set means."""

from pathlib import Path

import numpy as np
import pytest

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.encoder import encoder_digest, make_encoder, save_encoder
from hnm.learning.training.fit_encoder import NEGATIVE, POSITIVE
from hnm.learning.training.trainer import ReadTiles
from hnm.loop.finetune import finetune_encoder, with_extra
from hnm.loop.packs import Packs
from hnm.loop.paths import FinetuneFiles
from hnm.tables import MINED
from tests.support.extra import mined, pack


def files_in(folder: Path, encoder: str = "encoder") -> FinetuneFiles:
    return FinetuneFiles(
        mined=folder / "mined.parquet",
        packs=folder / "packs",
        extra=folder / "extra",
        previous=folder / "previous",
        folder=folder / encoder,
    )


def run(folder: Path, policy: str) -> tuple[list[dict[str, float]], int]:
    MINED.write(MINED.empty(), folder / "mined.parquet")
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), folder / "previous"
    )
    return finetune_encoder(
        files_in(folder),
        finetune=params.Finetune(),
        mining=params.Mining.model_validate({"policy": policy}),
        compute=params.Compute(),
        on_epoch=lambda epoch, metrics: None,
    )


def test_an_empty_mined_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        FinetuneError,
        match=(
            r"mined\.parquet is empty: nothing was mined; lower mining\.threshold or raise the"
            r" fractions"
        ),
    ):
        run(tmp_path, "hard")
    assert not (tmp_path / "encoder").exists()


def test_the_policy_none_hands_the_encoder_on(tmp_path: Path) -> None:
    assert run(tmp_path, "none") == ([], 0)
    assert encoder_digest(tmp_path / "encoder") == encoder_digest(tmp_path / "previous")
    assert not (tmp_path / "encoder" / "history.csv").exists()


def test_each_tile_is_learnt_from_in_its_own_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "packs", "n", 10, 20)
    pack(tmp_path / "packs", "p", 200, 210, 220)
    mined(
        tmp_path / "mined.parquet",
        ("positive", 1, "p", 2),
        ("hard_negative", 1, "n", 1),
        ("positive", 2, "p", 0),
    )
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), tmp_path / "previous"
    )
    seen: dict[int, int] = {}

    def fit(
        encoder: object, read: ReadTiles, roles: np.ndarray, *settings: object
    ) -> list[dict[str, float]]:
        seen.update(
            zip(read(np.arange(len(roles)))[:, 0, 0, 0].tolist(), roles.tolist(), strict=True)
        )
        return [{"epoch": 1, "loss": 1.0, "spread": 1.0}]

    monkeypatch.setattr("hnm.loop.finetune.fit_encoder", fit)
    settings = {
        "finetune": params.Finetune(),
        "mining": params.Mining(),
        "compute": params.Compute(threads=1),
    }
    finetune_encoder(files_in(tmp_path), **settings, on_epoch=lambda epoch, metrics: None)
    assert seen == {20: NEGATIVE, 200: POSITIVE, 220: POSITIVE}


def test_hard_negatives_of_another_project_are_learnt_from_with_its_pixels(tmp_path: Path) -> None:
    """Both projects have a slide `s`; the other's negatives come from its own packs, its positive
    and the slide that both have do not come.
    """
    other = tmp_path / "extra" / "other"
    pack(tmp_path / "packs", "s", 10, 20)
    pack(tmp_path / "packs", "p", 30)
    for slide_id, shades in (("s", [100, 110, 120]), ("p", [30])):
        pack(other / "packs", slide_id, *shades)
    own = mined(tmp_path / "mined.parquet", ("positive", 1, "p", 0), ("hard_negative", 1, "s", 1))
    mined(
        other / "mined.parquet",
        ("hard_negative", 1, "s", 2),
        ("hard_negative", 2, "s", 0),
        ("hard_negative", 3, "p", 0),
        ("positive", 1, "s", 1),
    )
    mining = params.Mining(extra=("other",))
    table = with_extra(own, tmp_path / "extra", tmp_path / "packs", mining)
    pixels = Packs(tmp_path / "packs").tiles(
        table["pack"].to_numpy(np.str_), table["tile"].to_numpy(np.int64)
    )
    shown = list(zip(table["role"], pixels[:, 0, 0, 0].tolist(), strict=True))
    assert shown == [
        ("hard_negative", 20),
        ("positive", 30),
        ("hard_negative", 100),
        ("hard_negative", 120),
    ]
    assert with_extra(own, tmp_path / "nowhere", tmp_path / "nowhere", params.Mining())[
        "pack"
    ].tolist() == ["s", "p"]

    encoders = {}
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), tmp_path / "previous"
    )
    for name, section in (("alone", params.Mining()), ("with_extra", mining)):
        settings = {
            "finetune": params.Finetune(epochs=1, warmup_epochs=0, batch_tiles=4),
            "mining": section,
            "compute": params.Compute(threads=1),
        }
        _, tiles = finetune_encoder(
            files_in(tmp_path, name), **settings, on_epoch=lambda epoch, metrics: None
        )
        encoders[name] = tiles, encoder_digest(tmp_path / name)
    assert (encoders["alone"][0], encoders["with_extra"][0]) == (2, 4) and encoders["alone"][
        1
    ] != encoders["with_extra"][1]
