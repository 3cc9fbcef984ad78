"""The doctor with broken inputs: each is named, and none hides the others."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hnm import doctor as doctor_module
from hnm.cli import app
from hnm.doctor import Finding, examine
from hnm.repository import outputs as outputs_module

ROOT = Path(__file__).parents[1]
THINGS = [
    "tools",
    "pipeline",
    "params",
    "slides",
    "lost",
    "causes",
    "runs",
    "place",
    "outputs",
    "remote",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Params and a manifest; DVC, which takes its second to start, answers at once."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "slides.csv").write_text("slide_id,path,label\na,a.tiff,0\n")
    (tmp_path / "data" / "demo" / "a.tiff").touch()
    answers(
        monkeypatch,
        stdout="core.remote=store\nremote.store.verify=true\nremote.store.url=https://me:geheim1@host/x?token=abc\n",
    )
    return tmp_path


def answers(
    monkeypatch: pytest.MonkeyPatch, *, stdout: str = "", stderr: str = "", code: int = 0
) -> None:
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(
        outputs_module,
        "subprocess",
        SimpleNamespace(run=lambda *_, **__: done, DEVNULL=subprocess.DEVNULL),
    )


def findings_of(root: Path) -> dict[str, Finding]:
    findings = list(examine(root))
    assert [finding.thing for finding in findings] == THINGS
    return {finding.thing: finding for finding in findings}


def latin(path: Path) -> None:
    path.write_bytes("slide_id,path\na,Müller.tiff\n".encode("latin-1"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (latin, "the manifest data/demo/slides.csv is not CSV in UTF-8: 'utf-8' codec"),
        (pipe, "the manifest data/demo/slides.csv is no regular file; write it as CSV in UTF-8"),
        (folder, "is no regular file"),
        (holding(b""), "has no column path, but none; name the column so"),
        (holding(b"slide,file\na,b\n"), "has no column path, but slide, file; name the column so"),
        (holding(b"path\n" + b"x" * 200_000 + b"\n"), "line 2: field larger than field limit"),
        (holding(b"path\na\0b\n"), "line 2 holds a null character; write it as CSV in UTF-8"),
        (holding(b"path\n" + b"x" * 5000 + b"\n"), "1 of 1 are not where the manifest says"),
        (
            holding(b"path,label\na.tiff,0,7,8\n\n"),
            "row 2: has more cells than the header (4, not 2)",
        ),
    ],
    ids=range(9),
)
def test_a_manifest_of_any_kind(project: Path, breaks: Callable[[Path], None], says: str) -> None:
    breaks(project / "data" / "demo" / "slides.csv")
    assert says in findings_of(project)["slides"].says


@pytest.mark.parametrize("content", [b"\xff", b"[1", b"7", b"", b"[" * 100_000])
def test_params_and_a_lock_of_any_kind(project: Path, content: bytes) -> None:
    (project / "dvc.lock").write_bytes(content)
    (project / "params.yaml").write_bytes(content[:9])
    findings = findings_of(project)
    assert not findings["params"].fine and "params.yaml" in findings["params"].says
    assert findings["slides"] == Finding("slides", False, "unknown without params")
    assert "dvc.lock" in findings["outputs"].says and findings["remote"].fine


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("", "it ended with 255"),
        ("\n", "it ended with 255"),
        ("ERROR: odd\nERROR: no repository\n", "ERROR: no repository"),
    ],
)
def test_a_dvc_that_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, says: str
) -> None:
    answers(monkeypatch, stderr=stderr, code=255)
    assert (
        findings_of(project)["remote"].says
        == f"DVC cannot be asked: {says}; mend that, dvc config --list tells more"
    )


def test_a_remote_is_named_without_its_secrets(project: Path) -> None:
    assert findings_of(project)["remote"] == Finding(
        "remote", True, "store, https://***@host/x?***"
    )


def test_slides_lost_to_the_machine_are_named_and_those_with_faults_are_not(project: Path) -> None:
    tables = [project / name for name in doctor_module.QUARANTINES]
    for table, rows in zip(
        tables,
        (
            'a,open,"a.svs is damaged or not whole (no tiff); copy it again"\n',
            (
                "b,tiles,the process that read it died (exit code -9)\nc,tiles,it took longer than"
                ' 3600 s and was given up\nd,tissue,"no tissue"\n'
            ),
        ),
        strict=True,
    ):
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(f"slide_id,step,reason\n{rows}")
    assert findings_of(project)["lost"] == Finding(
        "lost",
        False,
        "2 slides were lost to the machine: b (the process that read it died (exit code -9)), c (it"
        " took longer than 3600 s and was given up); these are no faults of the slides; delete"
        " data/cohort/quarantine.csv and data/tiles/quarantine.csv and run dvc repro, which reads"
        " them again",
    )
    tables[1].write_bytes(b"\xff")
    assert "data/tiles/quarantine.csv is not CSV in UTF-8" in findings_of(project)["lost"].says
    for table in tables:
        table.unlink()
    assert findings_of(project)["lost"].fine


def test_a_store_that_is_none_is_named(project: Path) -> None:
    (project / "mlflow.db").write_bytes(b"no database, but long enough to look like one" * 100)
    assert (
        "cannot be read as MLflow's store: file is not a database"
        in findings_of(project)["place"].says
    )


def test_what_nobody_thought_of_in_one_check_hides_no_other(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> Finding:
        raise ZeroDivisionError("at https://me:geheim1@host")

    monkeypatch.setattr(doctor_module, "_slides", fails)
    findings = findings_of(project)
    assert (
        findings["slides"].says
        == "cannot be examined (ZeroDivisionError: at https://***@host); please report this"
    )
    monkeypatch.setattr(
        doctor_module,
        "_lost",
        lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied", "/x")),
    )
    assert findings_of(project)["lost"].says.startswith(
        "/x: Permission denied; give this user the right to it"
    )
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and len(done.output.splitlines()) == len(THINGS)


def test_it_runs_as_its_user_runs_it(project: Path) -> None:
    """With the real DVC, which finds no repository here."""
    done = subprocess.run(
        [sys.executable, "-m", "hnm.cli", "doctor"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 1
        and "Traceback" not in done.stderr
        and len(done.stdout.splitlines()) == len(THINGS)
    )
