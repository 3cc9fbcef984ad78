"""What a study has left, where something has damaged it."""

from pathlib import Path

import optuna
import pytest

from hnm.errors import StudyError
from hnm.studies.files import StudyFiles, best_values, defaults_of, read_trials
from hnm.studies.storage import mend_journal


@pytest.mark.parametrize(
    "content",
    [
        b"params: {a: ",
        b"- 1\n",
        b"params: [1]\n",
        b"params: !!python/object/apply:os.system [true]\n",
        b"\xff\xfe\x00",
        b"[" * 5000,
        b"",
    ],
)
def test_a_damaged_best_trial_is_one_error_with_its_cure(tmp_path: Path, content: bytes) -> None:
    files = StudyFiles(tmp_path / "s")
    files.folder.mkdir()
    files.best.write_bytes(content)
    with pytest.raises(
        StudyError, match=r"best\.yaml holds no trial's params.*; run hnm tune export --study s$"
    ):
        best_values(files)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and no more PAR1", b"\x00" * 100])
def test_a_torn_table_of_trials_is_one_error_with_its_cure(tmp_path: Path, content: bytes) -> None:
    files = StudyFiles(tmp_path / "s")
    files.folder.mkdir()
    files.trials.write_bytes(content)
    with pytest.raises(
        StudyError,
        match=(
            r"trials\.parquet cannot be read: .*; run hnm tune export --study s, or bring it with"
            r" dvc pull"
        ),
    ):
        read_trials(files)


def test_a_line_of_a_journal_that_is_nested_without_end_is_damage(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.write_bytes(b'{"op_code": 0}\n' + b"[" * 100_000 + b"\n" + b'{"op_code": 1}\n')
    with pytest.raises(StudyError, match="is damaged in line 2 of 3; restore the file from a copy"):
        mend_journal(journal, print)


def test_a_study_of_an_earlier_version_with_labels_is_refused_with_the_cure() -> None:
    study = optuna.create_study(study_name="old")
    study.set_user_attr("defaults", {"ranking.margin": 0.5})
    study.set_user_attr("space", {"ranking.margin": {"low": 0.0, "high": 1.0, "when": {}}})
    assert defaults_of(study) == {"ranking.margin": 0.5}
    study.set_user_attr("space", {"ranking.margin@scores": {"low": 0.0, "high": 1.0}})
    with pytest.raises(
        StudyError,
        match=(
            r"the study old was begun by an earlier version with ranking\.margin@scores in"
            r" tune\.space, and labels behind @ are gone; begin another by --study"
        ),
    ):
        defaults_of(study)
