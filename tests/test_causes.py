"""The causes of a result: code, libraries, machine. What they should be is said by Python's import
system, torch and oneDNN themselves.
"""

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from hnm import causes
from hnm.causes import (
    CARRIERS,
    PLUMBING,
    causes_of,
    code_of,
    differences,
    imports_of,
    in_words,
    keys_of,
    libraries_of,
)

ROOT = Path(__file__).parents[1]
CPUINFO = """processor	: 0
vendor_id	: GenuineIntel
model name	: Xeon
flags		: fpu fma sse4_2 smep avx2 avx512f avx512bw amx_bf16 f16c

processor	: 1
vendor_id	: other
flags		: fpu
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of modules is forgotten, before and after."""
    for function in (causes._imported, causes._digests, causes._place_of):
        monkeypatch.setattr(causes, function.__name__, function.__wrapped__)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> version that it is said to have."""
    said: dict[str, str] = {}
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: said.get(name) or true(name))
    return said


class TestCode:
    def test_the_imports_of_a_stage_leave_the_plumbing_out(self) -> None:
        reached = imports_of("hnm.slides.cutting.tissue")
        assert {
            "hnm.slides",
            "hnm.slides.cutting.tissue",
            "hnm.slides.reading.slide",
            "hnm.slides.reading.canvas",
        } <= reached
        assert not {"hnm", "hnm.errors", "hnm.params"} & reached
        assert {
            "pipelines.head",
            "hnm.learning.heads.dsmil",
            "hnm.learning.training.losses",
        } <= imports_of("pipelines.head")

    @pytest.mark.parametrize("stage", ["tiles", "mine"])  # two that are quick to import
    def test_they_hold_all_that_python_imports_with_the_stage(self, stage: str) -> None:
        """A package's `__init__` runs when a module in it is imported: Python says so."""
        listed = (
            f"import sys, pipelines.{stage}; print(*(n for n in sys.modules if n.split('.')[0] in"
            " ('hnm', 'pipelines')))"
        )
        done = subprocess.run(
            [sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True
        )
        through_plumbing = {
            name for part in PLUMBING - {"hnm", "pipelines"} for name in _reached_by(part)
        }
        assert set(done.stdout.split()) - PLUMBING - through_plumbing <= imports_of(
            f"pipelines.{stage}"
        )

    def test_a_package_and_a_module_of_it_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
    ) -> None:
        monkeypatch.setattr(causes, "_is_ours", lambda name: name.split(".")[0] == "house")
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "house" / "wing").mkdir(parents=True)
        texts = {
            "__init__": "",
            "door": "from house.wing import KEY, room\n",
            "deep": "import house.wing.room\n",
            "near": "from .wing import room\n",
            "late": "def f():\n    from house import wing\n",
            "typed": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n    import"
                " house.door\nelse:\n    import torch\n"
            ),
            "wing/__init__": "from house.cellar import KEY\n",
            "wing/room": "",
            "cellar": "KEY = 1\n",
        }
        for name, text in texts.items():
            (tmp_path / "house" / f"{name}.py").write_text(text)
        through = {"house", "house.wing", "house.cellar"}
        assert imports_of("house.door") == {"house.door", "house.wing.room", *through}
        assert imports_of("house.deep") == {"house.deep", "house.wing.room", *through}
        assert imports_of("house.near") == {"house.near", "house.wing.room", *through}
        assert imports_of("house.late") == {"house.late", *through}
        assert imports_of("house.typed") == {"house", "house.typed"} and set(
            libraries_of("house.typed")
        ) == {"python", "torch"}

    def test_code_and_not_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        texts = [
            '"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n',
            "# why\n\ndef f(x):\n\n    return x + 1\n",
            "def f(x):\n    return x + 2\n",
        ]
        digests = []
        for text in texts:
            (tmp_path / "some_module.py").write_text(text)
            digests.append(code_of("some_module"))
        assert digests[0] == digests[1] != digests[2]

    def test_a_template_is_code_of_the_module_that_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
    ) -> None:
        templates = {name for name in code_of("pipelines.evaluate") if name.endswith(".jinja")}
        assert templates == {
            f"hnm.evidence.pages/{path.name}"
            for path in (ROOT / "hnm" / "evidence" / "pages").glob("*.jinja")
        }
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "some_page.py").write_text('PAGE = "page.html"\n')
        pages = []
        for text in ("<p>", "<b>"):
            (tmp_path / "page.html").write_text(text)
            pages.append(code_of("some_page"))
        assert pages[0] != pages[1] and pages[0]["some_page"] == pages[1]["some_page"]


class TestLibraries:
    def test_each_step_has_those_that_make_its_bytes(self) -> None:
        reading = {
            "openslide-python",
            "openslide-bin",
            "tifffile",
            "imagecodecs",
            "simplejpeg",
            "pillow",
            "numpy",
            "scikit-image",
            "h5py",
        }
        assert reading <= libraries_of("hnm.slides.cutting.cut").keys()
        assert {"torch", "timm", "torchvision", "simplejpeg", "numpy", "h5py"} <= libraries_of(
            "hnm.loop.embed"
        ).keys()
        assert {"torch", "kornia", "timm"} <= libraries_of("hnm.loop.finetune").keys()
        assert {"torch", "scikit-learn", "scipy", "pandas", "pyarrow"} <= libraries_of(
            "hnm.loop.head"
        ).keys()
        assert {
            "matplotlib",
            "plotly",
            "jinja2",
            "scikit-learn",
            "pandas",
            "pyarrow",
        } <= libraries_of("pipelines.evaluate").keys()

    @pytest.mark.parametrize("module", ["hnm.slides.cutting.cut", "hnm.loop.embed"])
    def test_packs_and_features_outlive_a_library_of_tables(self, module: str) -> None:
        assert not {"pandas", "pyarrow", "pandera"} & libraries_of(module).keys()

    def test_none_is_what_changes_no_bytes(self) -> None:
        named = {
            name
            for stage in ("cohort", "tiles", "embed", "head", "evaluate")
            for name in libraries_of(f"pipelines.{stage}")
        }
        assert not named & {"mlflow", "dvc", "typer", "rich", "pytest", *CARRIERS}

    def test_versions_are_those_installed(self) -> None:
        known = libraries_of("hnm.loop.embed")
        assert (
            known["torch"] == metadata.version("torch")
            and known["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
        )

    def test_no_library_is_imported_to_know_it(self) -> None:
        code = (
            "import sys; from hnm.causes import causes_of; causes_of('pipelines.finetune');"
            " print(*{'torch', 'numpy', 'timm', 'pandas'} & set(sys.modules))"
        )
        assert (
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.split()
            == []
        )

    def test_an_upgrade_is_another_key(self, versions: dict[str, str]) -> None:
        before = keys_of("hnm.loop.embed")(pack="a")
        for name in ("torch", "timm", "simplejpeg", "numpy"):
            versions[name] = "99.1"
            assert keys_of("hnm.loop.embed")(pack="a") != before
            del versions[name]
        versions |= {"mlflow": "99.1", "pandas": "99.1", "rich": "99.1"}
        assert keys_of("hnm.loop.embed")(pack="a") == before != keys_of("hnm.loop.embed")(pack="b")

    def test_what_is_not_installed_is_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(causes.PARTS, "torch", ("no-such-thing",))  # type: ignore[arg-type]
        assert libraries_of("hnm.loop.embed")["no-such-thing"] == "absent"


class TestMachine:
    def test_it_is_a_cause_where_torch_computes(self) -> None:
        having = {
            step
            for step in ("embed", "head", "finetune", "encoder")
            if "machine" in causes_of(f"hnm.loop.{step}")
        }
        assert having == {"embed", "head", "finetune", "encoder"}
        assert "machine" not in causes_of("hnm.slides.cutting.cut") and "machine" not in causes_of(
            "pipelines.cohort"
        )

    def test_the_processor_by_its_maker_and_instructions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(causes, "_CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(CPUINFO)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        assert (
            causes.processor()
            == "x86_64 GenuineIntel amx_bf16 avx2 avx512bw avx512f f16c fma sse4_2"
        )
        (tmp_path / "cpuinfo").write_text(
            "processor : 0\nFeatures : fp asimd sve bf16 aes\nCPU implementer : 0x41\nCPU part :"
            " 0xd40\n"
        )
        assert causes.processor() == "x86_64 0x41 0xd40 asimd bf16 sve"
        (tmp_path / "cpuinfo").unlink()
        assert causes.processor().startswith("x86_64")

    def test_another_processor_is_another_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = keys_of("hnm.loop.embed")(pack="a"), keys_of("hnm.slides.cutting.cut")(slide="a")
        monkeypatch.setattr(causes, "_CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(CPUINFO)
        assert (
            keys_of("hnm.loop.embed")(pack="a") != before[0]
            and keys_of("hnm.slides.cutting.cut")(slide="a") == before[1]
        )

    def test_a_setting_that_chooses_kernels_is_another_key(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in causes.SETTINGS:
            monkeypatch.delenv(name, raising=False)
        before = keys_of("hnm.loop.embed")(pack="a")
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what a training sets itself
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "")
        assert keys_of("hnm.loop.embed")(pack="a") == before
        keys = {before}
        for name, value in (
            ("ATEN_CPU_CAPABILITY", "default"),
            ("ONEDNN_MAX_CPU_ISA", "SSE41"),
            ("MKL_CBWR", "COMPATIBLE"),
        ):
            monkeypatch.setenv(name, value)
            keys.add(keys_of("hnm.loop.embed")(pack="a"))
        assert len(keys) == 4

    def test_the_settings_are_those_that_torch_obeys(self) -> None:
        """What is set changes torch's own answer, so that it must be a cause; one that torch does
        not know would not.
        """
        code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
        said = {
            value: (
                subprocess.run(
                    [sys.executable, "-c", code],
                    env=os.environ | {"ATEN_CPU_CAPABILITY": value},
                    capture_output=True,
                    text=True,
                ).stdout.strip()
            )
            for value in ("", "default")
        }
        assert said["default"] == "DEFAULT" and ("avx2" in causes.processor()) == (
            said[""] != "DEFAULT"
        )

    def test_the_gpu_where_one_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(causes, "gpu_name", lambda: "NVIDIA H200, CUDA 13.0, cuDNN 91900")
        assert "gpu" not in causes_of("hnm.loop.embed", "cpu")["machine"]
        assert (
            causes_of("hnm.loop.embed", "auto")["machine"]["gpu"]
            == "NVIDIA H200, CUDA 13.0, cuDNN 91900"
        )
        assert keys_of("hnm.loop.embed", "cuda")(pack="a") != keys_of("hnm.loop.embed", "cpu")(
            pack="a"
        )

    def test_the_gpu_is_the_one_that_torch_names(self) -> None:
        torch = pytest.importorskip("torch")
        name = causes.gpu_name()
        assert (
            name.startswith(torch.cuda.get_device_name(0))
            if torch.cuda.is_available()
            else name == ""
        )


def test_differences_name_what_changed_and_how() -> None:
    before = {
        "code": {"a": "1", "b": "2"},
        "libraries": {"torch": "2.13.0", "numpy": "2"},
        "machine": {"processor": "x"},
    }
    after = {
        "code": {"a": "1", "b": "3"},
        "libraries": {"torch": "2.14.0", "numpy": "2"},
        "machine": {"processor": "x", "MKL_CBWR": "AVX2"},
    }
    assert differences(before, before) == []
    assert differences(before, after) == [
        "code of b",
        "torch 2.13.0 -> 2.14.0",
        "MKL_CBWR none -> AVX2",
    ]
    assert (
        in_words(["a", "b", "c"]) == "a, b, c"
        and in_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    )


def test_causes_are_plain_and_stable_json() -> None:
    first, second = (json.dumps(causes_of("pipelines.head"), sort_keys=True) for _ in range(2))
    assert first == second


def _reached_by(module: str) -> set[str]:
    """What a module of the plumbing imports, directly or not: none of it is a cause by that way."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in reached or not file.exists():
            continue
        reached |= {
            name,
            *(".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)),
        }
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("hnm", "pipelines")
            ):
                waiting += [
                    str(node.module),
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                ]
            elif isinstance(node, ast.Import):
                waiting += [
                    alias.name
                    for alias in node.names
                    if alias.name.startswith(("hnm", "pipelines"))
                ]
    return reached
