"""Finalists: the default and the best trials, each with seeds that the study has not seen."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from hnm.errors import MiningError, StudyError
from hnm.evidence.numbers.winner import Finalist
from hnm.loop.rounds import Fold, RoundResult
from hnm.params import Params
from hnm.studies.files import StudyFiles
from hnm.studies.finalists import Race, finalists_of, run_finalists
from tests.support.loop import FormulaLoop
from tests.support.study import tiny_params


class KnownFold(Fold):
    smallest_auc_step = 0.125  # type: ignore[assignment]


FOLDS = [KnownFold(Path("t0"), Path("v0")), KnownFold(Path("t1"), Path("v1"))]


class NamedLoop(FormulaLoop):
    """Names each run's table after what made it; round 0 is the best."""

    def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
        assert fold is not None
        for number, auc in enumerate((0.75, 0.5)):
            yield RoundResult(
                number,
                auc,
                0.5,
                Path(f"{params.ranking.margin}-{params.head.seed}-{fold.validation}-{number}"),
                Path(),
                Path(),
                0.0,
            )


def write_table(files: StudyFiles, states: list[str], values: list[float]) -> None:
    rows = [
        {
            "trial": number,
            "state": state,
            "value": value,
            "validation_auc": value,
            "validation_loss": 0.5,
            "cost": 0.0,
            "rounds": 2,
            "best": value == max(values),
        }
        for number, (state, value) in enumerate(zip(states, values, strict=True))
    ]
    files.folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).assign(
        reason="", **{"ranking.margin": [0.5 + number / 16 for number in range(len(rows))]}
    ).to_parquet(files.trials)


def named(scores: Path, fold: Fold) -> Path:
    """Stands for the scores in a table."""
    assert str(fold.validation) in scores.name
    return scores


def run(files: StudyFiles, loop: FormulaLoop, count: int = 2, workers: int = 1) -> list[Finalist]:
    race = Race(count, seeds=2, workers=workers)
    return run_finalists(files, tiny_params(), loop, FOLDS, race, named, str)  # type: ignore[arg-type]


def test_the_default_comes_first_then_the_best_that_are_complete(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "s")
    write_table(
        files,
        ["complete", "complete", "pruned", "complete", "complete"],
        [0.5, 0.625, 0.875, 0.75, 0.25],
    )
    assert finalists_of(files, 2)["trial"].tolist() == [0, 3, 1]
    write_table(files, ["failed", "complete"], [0.5, 0.625])
    with pytest.raises(
        StudyError,
        match=(
            r"trial 0 of the study s, which is params\.yaml, is not complete, so there is nothing"
            r" to compare with"
        ),
    ):
        finalists_of(files, 2)
    write_table(files, ["complete", "pruned"], [0.5, 0.625])
    with pytest.raises(
        StudyError,
        match=(
            r"the study s has no complete trial beside params\.yaml; run hnm tune --study s"
            r" --trials 20"
        ),
    ):
        finalists_of(files, 2)


def test_each_runs_with_fresh_seeds_on_every_fold_and_its_best_round_counts(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "s")
    write_table(files, ["complete", "complete", "complete"], [0.5, 0.625, 0.75])
    finalists = run(files, NamedLoop(), count=1)
    assert [(finalist.trial, finalist.value) for finalist in finalists] == [(0, 0.5), (2, 0.75)]
    assert [[str(path) for path in run] for run in finalists[1].reruns.runs] == [
        ["0.625-1-v0-0", "0.625-1-v1-0"],
        ["0.625-2-v0-0", "0.625-2-v1-0"],
    ]


def test_a_setting_that_fails_with_another_seed_is_named(tmp_path: Path) -> None:
    class Failing(FormulaLoop):
        def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
            raise MiningError("nothing to mine")

    files = StudyFiles(tmp_path / "s")
    write_table(files, ["complete", "complete"], [0.5, 0.625])
    with pytest.raises(
        StudyError,
        match=(
            r"trial 0 fails with seed \+1: nothing to mine; a setting that depends on its seed so"
            r" much is none to apply"
        ),
    ):
        run(files, Failing())
