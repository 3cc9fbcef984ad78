"""A study: its first trial, its table, resuming, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from tiny_study import make_upstream, tiny_params

from hnm.errors import MiningError, StudyError
from hnm.experiments.space import space_of
from hnm.experiments.study import KILLED, Limits, StudyFiles, run_study, trials_table
from hnm.experiments.trial import Loop, RoundResult, Upstream
from hnm.params import Params
from hnm.store import Store, digest_of


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    data = tmp_path_factory.mktemp("cohort") / "data"
    make_upstream(data)
    return Upstream(data)


class FormulaLoop(Loop):
    """Rounds whose AUC is a formula of the params, so that a study of it takes no time; `stop` raises in the round that it names."""

    def __init__(self, stop: tuple[int, BaseException] | None = None) -> None:
        self.run: list[Params] = []
        self.stop = stop

    def rounds(self, params: Params) -> Iterator[RoundResult]:
        self.run.append(params)
        for number in range(2):
            if self.stop and len(self.run) == self.stop[0] and number == 0:
                raise self.stop[1]
            yield RoundResult(number, 0.5 + 0.25 * number - (params.ranking.margin - 0.75) ** 2 / 4, 0.5 + params.head.seed, Path(), Path(), Path(), 0.0)


def run(folder: Path, upstream: Upstream, loop: Loop, *, trials: int = 6, params: Params | None = None, storage: str | None = None) -> list[str]:
    lines: list[str] = []
    run_study(StudyFiles(folder), params or tiny_params(), upstream, loop, Limits(trials=trials), storage=storage, say=lines.append)
    return lines


def with_tune(**changes: Any) -> Params:
    return tiny_params(tune={**tiny_params().tune.model_dump(mode="json"), **changes})


def test_the_first_trial_is_params_yaml_and_the_table_tells_all(tmp_path: Path, upstream: Upstream) -> None:
    loop = FormulaLoop()
    lines = run(tmp_path / "s", upstream, loop, trials=4, params=with_tune(pruner="none"))
    assert loop.run[0] == with_tune(pruner="none")
    assert lines[0] == "trial 0: validation AUC 0.7344, log loss 0.5000"
    table = trials_table(space_of(tiny_params())).read(tmp_path / "s" / "trials.parquet")
    assert table["state"].tolist() == ["complete"] * 4 and table["rounds"].tolist() == [2] * 4
    assert table["ranking.margin"].tolist() == [params.ranking.margin for params in loop.run]
    assert table["value"][0] == 0.75 - 0.25**2 / 4 - 0.5 / 9 / 2 * (0.5 / 1.5)
    best = table.loc[table["validation_auc"].idxmax()]
    text = (tmp_path / "s" / "best.yaml").read_text()
    assert f"trial: {best['trial']}\n" in text and f"ranking.margin: {best['ranking.margin']}\n" in text


def test_a_trial_s_value_is_the_mean_over_seeds(tmp_path: Path, upstream: Upstream) -> None:
    loop = FormulaLoop()
    run(tmp_path / "s", upstream, loop, trials=1, params=with_tune(seeds=3))
    assert [params.head.seed for params in loop.run] == [0, 1, 2]
    table = trials_table(space_of(tiny_params())).read(tmp_path / "s" / "trials.parquet")
    assert table["validation_loss"].tolist() == [1.5]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(9)])
def test_an_interrupted_study_goes_on_as_if_it_had_not_been(tmp_path: Path, upstream: Upstream, stop: BaseException) -> None:
    run(tmp_path / "whole" / "s", upstream, FormulaLoop())
    for at in (1, 4):
        folder = tmp_path / str(at) / "s"
        with pytest.raises(type(stop)):
            run(folder, upstream, FormulaLoop(stop=(at, stop)))
        run(folder, upstream, FormulaLoop())
        assert digest_of(folder / "trials.parquet") == digest_of(tmp_path / "whole" / "s" / "trials.parquet")
        assert digest_of(folder / "best.yaml") == digest_of(tmp_path / "whole" / "s" / "best.yaml")


def test_the_trials_of_a_killed_process_are_closed_and_run_again(tmp_path: Path, upstream: Upstream) -> None:
    """As SIGKILL leaves them: RUNNING or WAITING."""
    folder, url = tmp_path / "s", f"sqlite:///{tmp_path / 's' / 'study.db'}"
    run(folder, upstream, FormulaLoop(), trials=3)
    corpse = optuna.load_study(storage=url, study_name="s").ask()
    run(folder, upstream, FormulaLoop())
    trials = optuna.load_study(storage=url, study_name="s").trials
    assert [trial.number for trial in trials if KILLED in trial.user_attrs] == [corpse.number]
    assert not [trial for trial in trials if not trial.state.is_finished()]
    run(tmp_path / "whole" / "s", upstream, FormulaLoop())
    assert digest_of(folder / "trials.parquet") == digest_of(tmp_path / "whole" / "s" / "trials.parquet")


def test_the_number_of_trials_is_that_of_all_runs_together(tmp_path: Path, upstream: Upstream) -> None:
    first, second = FormulaLoop(), FormulaLoop()
    run(tmp_path / "s", upstream, first, trials=4)
    run(tmp_path / "s", upstream, second, trials=6)
    assert (len(first.run), len(second.run)) == (4, 2)
    margins = [params.ranking.margin for params in first.run + second.run]
    assert len(set(margins)) == 6


def test_a_trial_below_the_median_is_pruned(tmp_path: Path, upstream: Upstream) -> None:
    lines = run(tmp_path / "s", upstream, FormulaLoop(), trials=12)
    table = trials_table(space_of(tiny_params())).read(tmp_path / "s" / "trials.parquet")
    pruned = table[table["state"] == "pruned"]
    assert len(pruned) and set(pruned["rounds"]) == {1} and set(pruned.index) & {0, 1} == set()
    assert any("pruned after round 0" in line for line in lines)


def test_a_failed_trial_is_told_and_the_study_goes_on(tmp_path: Path, upstream: Upstream) -> None:
    lines = run(tmp_path / "s", upstream, FormulaLoop(stop=(2, MiningError("nothing above the threshold"))), trials=4)
    assert lines[1] == "trial 1: failed: nothing above the threshold"
    table = trials_table(space_of(tiny_params())).read(tmp_path / "s" / "trials.parquet")
    assert table["state"].tolist().count("failed") == 1 and table["reason"][1] == "nothing above the threshold"


def test_a_study_stops_when_all_trials_fail(tmp_path: Path, upstream: Upstream) -> None:
    class FailingLoop(FormulaLoop):
        def rounds(self, params: Params) -> Iterator[RoundResult]:
            raise MiningError("nothing above the threshold")

    with pytest.raises(StudyError, match=r"all 5 trials failed, the last one so: nothing above the threshold; mend that or narrow tune\.space"):
        run(tmp_path / "s", upstream, FailingLoop(), trials=20)


def test_other_data_params_or_space_are_refused_by_name(tmp_path: Path, upstream: Upstream) -> None:
    run(tmp_path / "s", upstream, FormulaLoop(), trials=1)
    other = with_tune(space={"ranking.margin": {"low": 0.0, "high": 0.875}})
    for params, name in ((tiny_params(finetune={"epochs": 2}), "params"), (other, "params, space")):
        with pytest.raises(StudyError, match=rf"the study s was begun with other {name}, so its values say nothing of these; begin another by --study"):
            run(tmp_path / "s", upstream, FormulaLoop(), params=params)
    elsewhere = tmp_path / "data"
    make_upstream(elsewhere)
    labels = elsewhere / "cohort" / "labels" / "train.csv"
    labels.write_text(labels.read_text().replace("train_0,0", "train_0,1"))
    with pytest.raises(StudyError, match=r"begun with other train labels, so"):
        run(tmp_path / "s", Upstream(elsewhere), FormulaLoop())


def test_a_storage_that_cannot_be_used_is_named(tmp_path: Path, upstream: Upstream) -> None:
    for storage in (f"sqlite:///{tmp_path / 'missing' / 's.db'}", "nonsense"):
        with pytest.raises(StudyError, match=r"the storage .* cannot be used"):
            run(tmp_path / "s", upstream, FormulaLoop(), storage=storage)


def test_a_study_over_the_real_loop(tmp_path: Path, upstream: Upstream) -> None:
    lines = run(tmp_path / "s", upstream, Loop(upstream, Store(tmp_path / "store")), trials=3)
    assert len(lines) == 3 and not any("failed" in line for line in lines)
