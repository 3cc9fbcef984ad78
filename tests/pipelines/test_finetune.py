"""The stage `finetune` as DVC calls it, over two processes that torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from hnm import params
from hnm.learning.encoder import encoder_digest, make_encoder, save_encoder
from tests.support.extra import mined, pack

ROOT = Path(__file__).parents[2]
FLAGS = {
    "mined": "mined.parquet",
    "packs": "packs",
    "extra": "extra",
    "previous": "previous",
    "folder": "encoder",
    "round": "1",
}


def test_two_processes_of_torchrun_write_one_encoder(tmp_path: Path) -> None:
    pack(tmp_path / "packs", "n", *range(10, 90, 10))
    pack(tmp_path / "packs", "p", *range(120, 200, 10))
    roles = {"hard_negative": "n", "positive": "p"}
    mined(
        tmp_path / "mined.parquet",
        *(
            (role, tile + 1, slide_id, tile)
            for role, slide_id in roles.items()
            for tile in range(8)
        ),
    )
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), tmp_path / "previous"
    )
    yaml = YAML()
    sections = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections["compute"] |= {"processes": 2, "threads": 1}
    sections["finetune"] |= {"epochs": 2, "batch_tiles": 8, "projection_features": 8}
    yaml.dump(sections, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    command = [
        sys.executable,
        "-m",
        "pipelines.finetune",
        *(word for name, value in FLAGS.items() for word in (f"--{name}", value)),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(tmp_path),
        "HNM_TRACKING": "off",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "mined tiles" in line] == [
        done.stdout.strip()
    ]  # the first process alone tells
    assert done.stdout.endswith(" on 16 mined tiles\n")
    history = pd.read_csv(tmp_path / "encoder" / "history.csv")
    assert history["epoch"].tolist() == [1, 2] and np.isfinite(history["loss"]).all()
    assert encoder_digest(tmp_path / "encoder") != encoder_digest(tmp_path / "previous")
