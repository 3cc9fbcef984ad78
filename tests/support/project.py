"""A project as the pipeline of two rounds leaves it, without running it: every output of dvc.yaml,
small, and the dvc.lock that names them.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hnm.causes import causes_of
from hnm.files import write_json
from hnm.params import load_params
from hnm.repository.outputs import md5_of
from tests.support.model import make_parts

ROOT = Path(__file__).parents[2]
ROUNDS = {"0": None, "1": "0"}
METRICS = {
    "chosen_round": 1,
    "threshold": 0.375,
    "rounds": {
        "0": {
            "threshold": 0.25,
            "validation": {"auc": 0.625, "auc_low": 0.5, "auc_high": 0.75, "log_loss": 0.6875},
            "test": {},
            "test_tiles": {},
        },
        "1": {
            "threshold": 0.375,
            "validation": {"auc": 0.875, "auc_low": 0.75, "auc_high": 1.0, "log_loss": 0.5},
            "test": {},
            "test_tiles": {},
        },
    },
    "test": {"auc": 0.75},
    "test_tiles": {},
    "gain": {},
}


def make_project(root: Path) -> Path:
    """Writes outputs, dvc.yaml, params.yaml and dvc.lock into `root`."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir(exist_ok=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    for name in ("extra", "weights"):
        (root / name).mkdir()
        (root / name / ".gitkeep").touch()
    (root / "vetoes").mkdir()
    (root / "vetoes" / "vetoes.csv").write_text("slide_id,tile,x,y,reason\n")
    stages = dict(resolved())
    encoder, head = make_parts(root / ".parts")
    for name, stage in stages.items():
        for out in stage["outs"]:
            path = root / out
            path.parent.mkdir(parents=True, exist_ok=True)
            if out.startswith("data/causes/"):
                write_json(causes_of(f"pipelines.{path.stem}"), path)
            elif re.match(r"data/(encoders|heads)/", out):
                path.mkdir()
                for file in (encoder if "encoders" in out else head).values():
                    shutil.copy(file, path)
                (path / "history.csv").write_text(f"epoch,loss\n1,{name}\n")
            elif out == "results/metrics.json":
                path.write_text(json.dumps(METRICS))
            elif Path(out).suffix:
                path.write_text(f"{out} of {name}\n")
            else:
                path.mkdir()
                for slide in ("a", "b"):
                    (path / f"{slide}.h5").write_text(f"{out} of {name}: {slide}\n")
    write_lock(root)
    return root


def write_lock(root: Path) -> None:
    """dvc.lock of the outputs as they lie there."""
    params = load_params(root / "params.yaml").model_dump(mode="json")
    locked = {
        name: {
            "cmd": stage["cmd"],
            "deps": [
                {"path": path, "hash": "md5", "md5": md5_of(root / path)} for path in stage["deps"]
            ],
            "params": {"params.yaml": {section: params[section] for section in stage["params"]}},
            "outs": [
                {"path": path, "hash": "md5", "md5": md5_of(root / path)} for path in stage["outs"]
            ],
        }
        for name, stage in resolved()
    }
    YAML().dump({"schema": "2.0", "stages": locked}, root / "dvc.lock")


def fill_cache(root: Path) -> Path:
    """DVC's cache with all that dvc.lock names, metrics aside; returns its folder."""
    cache = root / ".dvc" / "cache" / "files" / "md5"
    for path in sorted(
        {out for _, stage in resolved() for out in stage["outs"]} - {"results/metrics.json"}
    ):
        here = root / path
        files = (
            {
                file.relative_to(here).as_posix(): file
                for file in sorted(here.rglob("*"))
                if file.is_file()
            }
            if here.is_dir()
            else {"": here}
        )
        for file in files.values():
            keep(cache, md5_of(file), file.read_bytes())
        if here.is_dir():
            keep(
                cache,
                md5_of(here),
                json.dumps(
                    [{"md5": md5_of(file), "relpath": name} for name, file in sorted(files.items())]
                ).encode(),
            )
    return cache


def keep(cache: Path, md5: str, content: bytes) -> None:
    place = cache / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(content)
    place.chmod(0o444)


def resolved() -> Iterator[tuple[str, dict[str, Any]]]:
    """The stages of dvc.yaml by DVC's name, those of both rounds."""
    for name, raw in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items():
        if "foreach" not in raw:
            yield name, _stage(raw, "", "")
            continue
        for key, previous in ROUNDS.items():
            if previous is not None or "later" not in raw["foreach"]:
                yield f"{name}@{key}", _stage(raw["do"], key, previous or "")


def _stage(raw: dict[str, Any], key: str, previous: str) -> dict[str, Any]:
    def filled(text: str) -> str:
        return text.replace("${key}", key).replace("${item.previous}", previous)

    paths = {
        kind: [
            filled(entry if isinstance(entry, str) else next(iter(entry)))
            for entry in raw.get(kind, [])
        ]
        for kind in ("deps", "outs", "metrics")
    }
    return {
        "cmd": shlex.join(shlex.split(filled(raw["cmd"]))),
        "deps": paths["deps"],
        "outs": [*paths["outs"], *paths["metrics"]],
        "params": raw.get("params", []),
    }
