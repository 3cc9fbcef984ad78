"""Fine-tuning from files: what an empty mined set means."""

from pathlib import Path

import pytest

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.encoder import encoder_digest, make_encoder, save_encoder
from hnm.loop.finetune import finetune_encoder
from hnm.tables import MINED


def run(folder: Path, policy: str) -> tuple[list[dict[str, float]], int]:
    MINED.write(MINED.empty(), folder / "mined.parquet")
    save_encoder(make_encoder(params.Encoder(name="test_resnet", weights="random")), folder / "previous")
    return finetune_encoder(
        folder / "mined.parquet",
        folder / "packs",
        folder / "previous",
        folder / "encoder",
        finetune=params.Finetune(),
        mining=params.Mining.model_validate({"policy": policy}),
        compute=params.Compute(),
        on_epoch=lambda epoch, metrics: None,
    )


def test_an_empty_mined_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"mined\.parquet is empty: nothing was mined; lower mining\.threshold or raise the fractions"):
        run(tmp_path, "hard")
    assert not (tmp_path / "encoder").exists()


def test_the_policy_none_hands_the_encoder_on(tmp_path: Path) -> None:
    assert run(tmp_path, "none") == ([], 0)
    assert encoder_digest(tmp_path / "encoder") == encoder_digest(tmp_path / "previous")
    assert not (tmp_path / "encoder" / "history.csv").exists()
