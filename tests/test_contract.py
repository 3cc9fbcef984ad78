"""dvc.yaml, the stages' signatures and their imports say the same; and only `evaluate` may open test labels and annotations."""

import importlib
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hnm.code import PLUMBING, imports_of
from hnm.params import Params, load_params
from pipelines import deps, stage

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, Any]] = {name: raw.get("do", raw) for name, raw in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()}


def main_of(name: str) -> Any:
    return importlib.import_module(f"pipelines.{name}").main


def flags_in(command: str) -> dict[str, str]:
    return dict(re.findall(r"--(\S+) (\S+)", command))


def paths_of(name: str, kind: str) -> list[str]:
    entries = [entry if isinstance(entry, str) else next(iter(entry)) for entry in STAGES[name].get(kind, [])]
    return [entry for entry in entries if not entry.endswith((".py", ".jinja"))]


def outs_of(name: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in paths_of(name, kind)]


def code_of(module: str) -> str:
    return importlib.util.find_spec(module).origin.removeprefix(f"{ROOT}/")  # type: ignore[union-attr]


def test_every_stage_file_is_a_stage_of_dvc_yaml() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__", "stage", "deps"} == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
class TestStage:
    def test_flags_are_the_signature(self, name: str) -> None:
        command = STAGES[name]["cmd"]
        assert command.split()[:3] == ["python", "-m", f"pipelines.{name}"]
        assert [flag.replace("-", "_") for flag in flags_in(command)] == list(stage.flags_of(main_of(name)))

    def test_no_value_of_params_yaml_stands_in_a_command(self, name: str) -> None:
        """DVC hands the command to a shell as it is: whatever is filled in there could be a program."""
        assert "$" not in STAGES[name]["cmd"] and re.fullmatch(r"[\w ./{}-]+", STAGES[name]["cmd"])

    def test_params_are_the_sections(self, name: str) -> None:
        assert STAGES[name].get("params", []) == stage.sections_of(main_of(name))
        assert set(stage.sections_of(main_of(name))) <= set(Params.model_fields)

    def test_every_path_is_exactly_one_dep_or_out(self, name: str) -> None:
        kinds = stage.flags_of(main_of(name))
        paths = [
            value.replace("{round}", "${key}").replace("{previous}", "${item.previous}")
            for flag, value in flags_in(STAGES[name]["cmd"]).items()
            if kinds[flag.replace("-", "_")] is Path
        ]
        assert Counter(paths) == Counter(paths_of(name, "deps") + outs_of(name))

    def test_code_deps_are_the_imports_without_the_plumbing(self, name: str) -> None:
        code = [entry for entry in STAGES[name].get("deps", []) if entry.endswith(".py")]
        wanted = sorted(code_of(module) for module in imports_of(f"pipelines.{name}"))
        assert code == wanted, "run python -m pipelines.deps --write"


def test_a_command_writes_the_code_deps() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    outdated = re.sub(r" +- hnm/draws\.py\n", "", text).replace("hnm/loop/mine.py", "hnm/loop/of_before.py")
    assert outdated != text == deps.with_code_deps(outdated)


def test_only_evaluate_depends_on_test_labels_or_annotations() -> None:
    guarded = {"data/cohort/labels/test.csv", "data/cohort/annotations"}
    assert guarded <= set(outs_of("cohort"))
    for name in STAGES:
        deps = paths_of(name, "deps")
        reached = {path for path in guarded if any(path == dep or path.startswith(f"{dep}/") for dep in deps)}
        assert reached == (guarded if name == "evaluate" else set())


def test_no_stage_depends_on_how_studies_search() -> None:
    assert not [name for name in STAGES if "tune" in STAGES[name].get("params", [])]


def test_mining_reads_train_labels_alone() -> None:
    assert [path for path in paths_of("mine", "deps") if "labels" in path] == ["data/cohort/labels/train.csv"]


def test_one_stage_makes_each_output() -> None:
    assert max(Counter(path for name in STAGES for path in outs_of(name)).values()) == 1


def test_the_plumbing_exists_and_knows_no_method() -> None:
    for module in PLUMBING:
        assert importlib.util.find_spec(module), module
    assert not {module for module in PLUMBING if module.startswith(("hnm.learning", "hnm.mining", "hnm.evidence", "hnm.slides"))}


def test_params_yaml_names_every_param_at_its_place() -> None:
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params = load_params(ROOT / "params.yaml").model_dump(mode="json")

    def keys(value: Any) -> Any:
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    for named in (raw, params):
        named["tune"]["space"] = named["rounds"] = named["later_rounds"] = None
    assert keys(raw) == keys(params)
