"""A small pipeline that the real DVC runs, to be pushed by one person and pulled by another; its
stages know no hnm, so that they are quick.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAD = """
import sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, round_ = Path(flags["--folder"]), flags["--round"]
folder.mkdir(parents=True)
features = (Path(flags["--features"]) / "a.h5").read_text()
(folder / "head.json").write_text("{}")
(folder / "weights.safetensors").write_text(f"weights of {features} in round {round_}")
columns = "epoch,loss,validation_auc,validation_loss,learning_rate"
(folder / "history.csv").write_text(columns + "\\n1,0.5,0.75,0.625,0.001\\n")
"""

TILES = """
import sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
slides = Path(flags["--slides"]).read_text()
for round_ in "01":
    folder = Path(flags["--features"]) / round_
    folder.mkdir(parents=True)
    (folder / "a.h5").write_text(f"features of {slides} in round {round_}")
"""

EVALUATE = """
import json, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
numbers = {"validation": {"auc": 0.75}, "test": {"auc": 0.625}, "test_tiles": {}}
content = {"chosen_round": 1, "threshold": 0.25, "rounds": {"0": numbers, "1": numbers}}
content |= {"test": {"auc": 0.625}, "test_tiles": {}, "gain": {}}
Path(flags["--metrics"]).parent.mkdir(parents=True, exist_ok=True)
Path(flags["--metrics"]).write_text(json.dumps(content))
"""

PIPELINE = """
stages:
  tiles:
    cmd: python -m pipelines.tiles --slides slides.csv --features data/features
    always_changed: true
    params: [cohort]
    deps: [pipelines/tiles.py]
    outs: [data/features/0, data/features/1]
  head:
    foreach: ${rounds}
    do:
      cmd: >-
        python -m pipelines.head
        --features data/features/${key}
        --folder data/heads/${key}
        --round ${key}
      params: [head]
      deps:
        - data/features/${key}
      outs:
        - data/heads/${key}
  evaluate:
    cmd: python -m pipelines.evaluate --heads data/heads --metrics results/metrics.json
    params: [rounds]
    deps: [data/heads]
    metrics:
      - results/metrics.json:
          cache: false
"""


def make_shared(root: Path, url: str, *options: str) -> Path:
    """A repository whose pipeline has run, committed to git and pushed to the DVC remote `url`."""
    (root / "pipelines").mkdir(parents=True)
    for name, text in {"__init__": "", "tiles": TILES, "head": HEAD, "evaluate": EVALUATE}.items():
        (root / "pipelines" / f"{name}.py").write_text(text)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace('  "2": {previous: "1"}\n', "")
    )
    (root / "slides.csv").write_text("slides of one hospital")
    (root / ".gitignore").write_text(
        "/data/\n/slides.csv\n/.hnm/\n/mlflow.db*\n/mlruns/\n__pycache__/\n"
    )
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    remote = "".join(f"    {line}\n" for line in (f"url = {url}", "verify = true", *options))
    (root / ".dvc" / "config").write_text(
        f"[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n{remote}"
    )
    run(root, "dvc", "repro", "-q")
    run(root, "dvc", "push", "-q")
    run(root, "git", "add", ".")
    run(root, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return root


def clone(root: Path, target: Path) -> Path:
    """A colleague's clone with the data pulled; it has no slides."""
    run(target.parent, "git", "clone", "-q", str(root), target.name)
    run(target, "dvc", "pull", "-q")
    return target


def run(folder: Path, *command: str) -> str:
    """Output of a command that must succeed."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC", "HNM", "MLFLOW"))
    }
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=inherited | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
