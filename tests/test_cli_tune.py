"""`hnm tune`, as it is typed wrongly."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hnm.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--study margins apply 3",
            (
                "--study stands before apply, which does not see it there; give apply its options"
                " after its name"
            ),
        ),
        (
            "apply --study margin",
            "there is no study margin in studies; there are margins; name one by --study",
        ),
        ("report --study margin", "params.yaml does not exist"),
        (
            "apply --study a/b",
            "--study 'a/b' must be letters, digits, dots, dashes and underscores",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HNM_STUDY_STORAGE", raising=False)
    monkeypatch.setenv("DVC_ROOT", ".")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies" / "margins").mkdir(parents=True)
    (tmp_path / "studies" / "margins" / "dvc.yaml").touch()
    done = CliRunner().invoke(app, ["tune", *arguments.split()])
    assert (
        done.exit_code == 1
        and done.stderr.startswith(f"error: {message}")
        and done.stderr.count("\n") == 1
    )
