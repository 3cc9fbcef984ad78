"""dvc.yaml, the stages' signatures and their imports say the same; and only `evaluate` may open
test labels and annotations.
"""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hnm.causes import CARRIERS, PARTS, PLUMBING, causes_of, imports_of
from hnm.loop.paths import Paths
from hnm.params import Params, load_params
from hnm.repository.stages import of_round
from pipelines import stage

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, Any]] = {
    name: raw.get("do", raw)
    for name, raw in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}


def main_of(name: str) -> Any:
    return importlib.import_module(f"pipelines.{name}").main


def flags_in(command: str) -> dict[str, str]:
    return dict(re.findall(r"--(\S+) (\S+)", command))


def paths_of(name: str, kind: str) -> list[str]:
    return [
        entry if isinstance(entry, str) else next(iter(entry))
        for entry in STAGES[name].get(kind, [])
    ]


def paths_in(name: str, round_: int) -> dict[str, str]:
    """The paths that dvc.yaml gives a stage of a round, by flag, but for the file of its causes."""
    kinds = stage.flags_of(main_of(name))
    words = {flag.replace("-", "_"): word for flag, word in flags_in(STAGES[name]["cmd"]).items()}
    return {
        flag: of_round(words[flag], str(round_)) for flag, kind in kinds.items() if kind is Path
    }


def files_of(name: str, round_: int) -> Any:
    """The dataclass that `Paths` gives a stage of a round."""
    files = getattr(Paths(), name)
    return files(round_) if callable(files) else files


def outs_of(name: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in paths_of(name, kind)]


def test_every_stage_file_is_a_stage_of_dvc_yaml() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__", "stage"} == set(
        STAGES
    )


@pytest.mark.parametrize("name", STAGES)
class TestStage:
    def test_flags_are_the_signature(self, name: str) -> None:
        command = STAGES[name]["cmd"]
        assert command.split()[:3] == ["python", "-m", f"pipelines.{name}"]
        causes = [] if name == "causes" else ["causes"]
        assert [flag.replace("-", "_") for flag in flags_in(command)] == [
            *stage.flags_of(main_of(name)),
            *causes,
        ]

    def test_each_flag_has_its_help(self, name: str) -> None:
        helps = stage.help_of(main_of(name))
        assert stage.flags_of(main_of(name)).keys() <= helps.keys()
        assert all(text.endswith(".") for text in helps.values())

    def test_no_flag_has_the_name_of_a_section(self, name: str) -> None:
        """`main` is given both by name."""
        assert not stage.flags_of(main_of(name)).keys() & set(stage.sections_of(main_of(name)))

    @pytest.mark.parametrize("round_", [1, 12])
    def test_paths_are_those_of_the_project(self, name: str, round_: int) -> None:
        named = {flag: str(path) for flag, path in vars(files_of(name, round_)).items()}
        assert named == paths_in(name, round_)
        assert name == "causes" or str(getattr(Paths().causes, name)) == flags_in(
            STAGES[name]["cmd"]
        ).get("causes")

    def test_a_step_is_given_its_files_alone(self, name: str) -> None:
        """Whoever imports `Paths` could open every path of the project, test labels too."""
        modules = imports_of(f"pipelines.{name}") & {f"hnm.loop.{name}", f"pipelines.{name}"}
        imported = {
            alias.name
            for module in modules
            for node in ast.walk(ast.parse(_text_of(module)))
            if isinstance(node, ast.ImportFrom) and node.module == "hnm.loop.paths"
            for alias in node.names
        }
        assert imported == {f"{name.capitalize()}Files"}
        assert not {"hnm.loop.rounds", "hnm.loop.evaluate"} & (
            imports_of(f"pipelines.{name}") - {f"hnm.loop.{name}"}
        )

    def test_no_value_of_params_yaml_stands_in_a_command(self, name: str) -> None:
        """DVC hands the command to a shell as it is: whatever is filled in there could be a
        program.
        """
        assert "$" not in STAGES[name]["cmd"] and re.fullmatch(r"[\w ./{}-]+", STAGES[name]["cmd"])

    def test_params_are_the_sections(self, name: str) -> None:
        assert STAGES[name].get("params", []) == stage.sections_of(main_of(name))
        assert set(stage.sections_of(main_of(name))) <= set(Params.model_fields)

    def test_every_path_is_exactly_one_dep_or_out(self, name: str) -> None:
        kinds = stage.flags_of(main_of(name)) | {"causes": Path}
        paths = [
            value.replace("{round}", "${key}").replace("{previous}", "${item.previous}")
            for flag, value in flags_in(STAGES[name]["cmd"]).items()
            if kinds[flag.replace("-", "_")] is Path
        ]
        assert Counter(paths) == Counter(paths_of(name, "deps") + outs_of(name))

    def test_each_stage_depends_on_its_causes_and_on_no_code(self, name: str) -> None:
        written = {
            stage: path
            for stage, path in flags_in(STAGES["causes"]["cmd"]).items()
            if stage in STAGES
        }
        assert [path for path in paths_of(name, "deps") if path in written.values()] == (
            [] if name == "causes" else [written[name]]
        )
        assert flags_in(STAGES[name]["cmd"]).get("causes") == written.get(name)
        assert not [
            path
            for path in paths_of(name, "deps")
            if path.startswith(("hnm", "pipelines")) or path.endswith((".py", ".jinja"))
        ]

    def test_each_library_is_a_cause_by_its_distribution_or_a_carrier(self, name: str) -> None:
        """An import of another name than its distribution, and one that changes no bytes, are named
        in `hnm.causes`.
        """
        imported = {
            word.split(".")[0]
            for module in imports_of(f"pipelines.{name}")
            for word in _imported_libraries(module)
        }
        causes = causes_of(f"pipelines.{name}")["libraries"]
        distributions = metadata.packages_distributions()
        for library in imported - CARRIERS:
            parts = set(PARTS.get(library, (library,)))
            assert parts <= causes.keys() and "absent" not in {causes[part] for part in parts}
            assert {_normal(part) for part in parts} & {
                _normal(name) for name in distributions[library]
            }, f"name the distribution of {library} in hnm.causes.PARTS"


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _text_of(module: str) -> str:
    return Path(importlib.util.find_spec(module).origin or "").read_text()  # type: ignore[union-attr]


def _imported_libraries(module: str) -> set[str]:
    """What the text of a module imports from elsewhere, wherever in it that stands."""
    text = _text_of(module)
    text = re.sub(r"^if TYPE_CHECKING:.*\n(?: .*\n|\n)+", "", text, flags=re.MULTILINE)
    named = set(re.findall(r'import_module\("(\w+)', text))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add((node.module or "").partition(".")[0])
    return named - sys.stdlib_module_names - {"hnm", "pipelines"}


def test_every_key_of_the_store_holds_the_causes() -> None:
    """A module that places results in the store takes their keys from `keys_of`, and names none of
    the causes itself.
    """
    placing = {
        path: path.read_text()
        for folder in ("hnm", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
    }
    placing = {
        path: text
        for path, text in placing.items()
        if re.search(r"store\.(path|folder)\(", text) and path.name != "store.py"
    }
    assert {path.name for path in placing} == {
        "tiles.py",
        "embed.py",
        "identity.py",
        "rounds.py",
        "folds.py",
        "runs.py",
    }
    for path, text in placing.items():
        assert "keys_of(" in text and "code=" not in text and " key_of(" not in text, path


def test_an_installed_package_brings_the_stages_and_the_templates() -> None:
    """A project may lie outside of the clone."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["packages"]["find"]["include"]) == {"hnm*", "pipelines*"}
    assert setuptools["package-data"]["hnm.evidence.pages"] == ["*.jinja"]


def test_only_evaluate_depends_on_test_labels_or_annotations() -> None:
    guarded = {"data/cohort/labels/test.csv", "data/cohort/annotations"}
    assert guarded <= set(outs_of("cohort"))
    for name in STAGES:
        deps = paths_of(name, "deps")
        reached = {
            path
            for path in guarded
            if any(path == dep or path.startswith(f"{dep}/") for dep in deps)
        }
        assert reached == (guarded if name == "evaluate" else set())
        given = guarded & {str(path) for path in vars(files_of(name, 1)).values()}
        assert given == (guarded if name in ("cohort", "evaluate") else set())
        evidence = {
            module
            for module in imports_of(f"pipelines.{name}")
            if module.startswith("hnm.evidence")
        }
        assert bool(evidence) == (name == "evaluate"), evidence


def test_no_stage_depends_on_how_studies_search() -> None:
    assert not [name for name in STAGES if "tune" in STAGES[name].get("params", [])]


def test_mining_reads_train_labels_alone() -> None:
    assert [path for path in paths_of("mine", "deps") if "labels" in path] == [
        "data/cohort/labels/train.csv"
    ]


def test_one_stage_makes_each_output() -> None:
    assert max(Counter(path for name in STAGES for path in outs_of(name)).values()) == 1


def test_the_plumbing_exists_and_knows_no_method() -> None:
    for module in PLUMBING:
        assert importlib.util.find_spec(module), module
    assert not {
        module
        for module in PLUMBING
        if module.startswith(("hnm.learning", "hnm.mining", "hnm.evidence", "hnm.slides"))
    }


def test_params_yaml_names_every_param_at_its_place() -> None:
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params = load_params(ROOT / "params.yaml").model_dump(mode="json")

    def keys(value: Any) -> Any:
        return (
            {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None
        )

    for named in (raw, params):
        named["tune"]["space"] = named["rounds"] = named["later_rounds"] = None
    assert keys(raw) == keys(params)
