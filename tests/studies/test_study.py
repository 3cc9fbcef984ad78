"""A study: its first trial, its table, resuming, workers, pruning, and what it refuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from hnm.errors import MiningError, ParamsError, StudyError
from hnm.files import digest_of
from hnm.loop.rounds import Fold, Loop, RoundResult, Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.studies.files import StudyFiles, best_values, export, load_study, trials_table
from hnm.studies.space import space_of
from hnm.studies.storage import mend_journal
from hnm.studies.study import StudySettings, run_study
from hnm.studies.trials import Job, run_trials, work
from tests.support.loop import FormulaLoop
from tests.support.study import make_upstream, tiny_params


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    data = tmp_path_factory.mktemp("cohort") / "data"
    make_upstream(data)
    return Upstream(data.parent)


def run(
    folder: Path,
    upstream: Upstream,
    loop: Loop,
    *,
    trials: int | None = 6,
    seconds: float | None = None,
    params: Params | None = None,
    **more: Any,
) -> list[str]:
    lines: list[str] = []
    say = more.pop("say", lines.append)
    settings = StudySettings(
        StudyFiles(folder),
        params or tiny_params(),
        upstream,
        loop,
        Store(folder.parent / "store"),
        trials,
        seconds,
        **more,
    )
    run_study(settings, say)
    return lines


def with_tune(**changes: Any) -> Params:
    return tiny_params(tune={**tiny_params().tune.model_dump(mode="json"), **changes})


def table_of(folder: Path, params: Params | None = None) -> Any:
    return trials_table(space_of(params or tiny_params()).defaults).read(folder / "trials.parquet")


def in_storage(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return load_study(StudyFiles(folder), None).trials


def test_the_first_trial_is_params_yaml_and_the_table_tells_all(
    tmp_path: Path, upstream: Upstream
) -> None:
    loop = FormulaLoop()
    lines = run(tmp_path / "s", upstream, loop, trials=4, params=with_tune(pruner="none"))
    assert loop.seen[0] == with_tune(pruner="none")
    assert lines[0] == "trial 0: validation AUC 0.7344, log loss 0.5000, cost 300"
    assert lines[-1] == "4 trials: 4 complete, 0 pruned, 0 failed; pruning saved 0 of 8 rounds"
    table = table_of(tmp_path / "s")
    assert table["state"].tolist() == ["complete"] * 4 and table["rounds"].tolist() == [2] * 4
    assert table["ranking.margin"].tolist() == [params.ranking.margin for params in loop.seen]
    assert table["value"][0] == 0.75 - 0.25**2 / 4 - 0.5 / 9 / 2 * (0.5 / 1.5)
    best = table.loc[table["value"].idxmax()]
    assert table[table["best"]]["trial"].tolist() == [best["trial"]]
    assert (tmp_path / "s" / "best.yaml").read_text().startswith(f"trial: {best['trial']}\nvalue: ")
    assert best_values(StudyFiles(tmp_path / "s")) == {
        name: best[name] for name in ("mining.negative_fraction", "ranking.margin")
    }


def test_a_trial_s_value_is_the_mean_over_seeds(tmp_path: Path, upstream: Upstream) -> None:
    loop = FormulaLoop()
    run(tmp_path / "s", upstream, loop, trials=1, params=with_tune(seeds=3))
    assert [params.head.seed for params in loop.seen] == [0, 1, 2]
    assert table_of(tmp_path / "s")["validation_loss"].tolist() == [1.5]


def test_a_trial_s_value_is_the_mean_over_folds(tmp_path: Path, upstream: Upstream) -> None:
    loop = FormulaLoop()
    run(tmp_path / "s", upstream, loop, trials=1, params=with_tune(folds=3, seeds=2))
    folds = loop.folds[:3]
    assert (
        loop.folds == folds * 2
        and len(set(folds)) == 3
        and [params.head.seed for params in loop.seen] == [0, 0, 0, 1, 1, 1]
    )
    steps = [fold.smallest_auc_step for fold in folds if fold is not None]
    values = [0.734375 - step / 2 * loss / (1 + loss) for loss in (0.5, 1.5) for step in steps]
    assert table_of(tmp_path / "s")["value"][0] == pytest.approx(sum(values) / 6, abs=1e-15)
    assert table_of(tmp_path / "s")["rounds"].tolist() == [12]


def test_the_folds_are_dealt_by_the_seed_of_the_study(tmp_path: Path, upstream: Upstream) -> None:
    dealt = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        loop = FormulaLoop()
        run(tmp_path / name, upstream, loop, trials=1, params=with_tune(folds=3, seed=seed))
        dealt.append([None if fold is None else fold.digests for fold in loop.folds])
    assert dealt[0] == dealt[1]
    assert all(
        one != other
        for one, other in ((dealt[0], dealt[2]), (dealt[0], dealt[3]), (dealt[2], dealt[3]))
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(9)])
def test_an_interrupted_study_goes_on_as_if_it_had_not_been(
    tmp_path: Path, upstream: Upstream, stop: BaseException
) -> None:
    run(tmp_path / "whole" / "s", upstream, FormulaLoop())
    for at in (1, 4):
        folder = tmp_path / str(at) / "s"
        with pytest.raises(type(stop)):
            run(folder, upstream, FormulaLoop(stop=(at, stop)))
        run(folder, upstream, FormulaLoop())
        for name in ("trials.parquet", "best.yaml", "dvc.yaml"):
            assert digest_of(folder / name) == digest_of(tmp_path / "whole" / "s" / name), name


def test_the_trials_of_a_killed_process_are_closed_and_run_again(
    tmp_path: Path, upstream: Upstream
) -> None:
    """As SIGKILL leaves them: RUNNING, the journal locked, its last line torn."""
    folder = tmp_path / "s"
    run(folder, upstream, FormulaLoop(), trials=3)
    corpse = load_study(StudyFiles(folder), None).ask()
    with (folder / "study.journal").open("ab") as stream:
        stream.write(b'{"op_code":5,"trial')
    (folder / "study.journal.lock").symlink_to("study.journal")
    torn = (folder / "study.journal").read_bytes()
    lines = run(folder, upstream, FormulaLoop())
    assert (
        lines[0]
        == "the last line of study.journal was torn by a kill and is cut off; study.journal.torn.1"
        " keeps it"
    )
    assert (folder / "study.journal.torn.1").read_bytes() == torn
    trials = in_storage(folder)
    assert [trial.number for trial in trials if trial.state == optuna.trial.TrialState.FAIL] == [
        corpse.number
    ]
    assert all(trial.state.is_finished() for trial in trials)
    run(tmp_path / "whole" / "s", upstream, FormulaLoop())
    assert digest_of(folder / "trials.parquet") == digest_of(
        tmp_path / "whole" / "s" / "trials.parquet"
    )


def test_a_journal_damaged_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"a":1}\n{"b":\n{"c":3}\n')
    with pytest.raises(
        StudyError,
        match=(
            r"study\.journal is damaged in line 2 of 3; restore the file from a copy, or begin"
            r" another study"
        ),
    ):
        mend_journal(path, print)
    assert path.read_bytes() == b'{"a":1}\n{"b":\n{"c":3}\n'


def test_the_number_of_trials_is_that_of_all_runs_together(
    tmp_path: Path, upstream: Upstream
) -> None:
    first, second = FormulaLoop(), FormulaLoop()
    run(tmp_path / "s", upstream, first, trials=4)
    run(tmp_path / "s", upstream, second, trials=6)
    assert (len(first.seen), len(second.seen)) == (4, 2)
    assert len({params.ranking.margin for params in first.seen + second.seen}) == 6
    assert run(tmp_path / "s", upstream, FormulaLoop(), trials=6) == [
        "6 trials: 5 complete, 1 pruned, 0 failed; pruning saved 1 of 12 rounds"
    ]


def test_no_trial_is_started_after_the_timeout(tmp_path: Path, upstream: Upstream) -> None:
    loop = FormulaLoop()
    run(tmp_path / "s", upstream, loop, trials=None, seconds=0.0)
    assert not loop.seen and not (tmp_path / "s" / "trials.parquet").exists()


def test_winners_of_other_studies_are_tried_after_params_yaml(
    tmp_path: Path, upstream: Upstream
) -> None:
    loop = FormulaLoop()
    run(
        tmp_path / "s",
        upstream,
        loop,
        trials=3,
        winners=[{"ranking.margin": 0.75}, {"ranking.margin": 0.5}],
    )
    assert [params.ranking.margin for params in loop.seen[:2]] == [0.5, 0.75] and loop.seen[
        2
    ].ranking.margin not in (0.5, 0.75)
    assert loop.seen[1].mining.negative_fraction == tiny_params().mining.negative_fraction
    for winner, message in (
        ({"ranking.margin": 1.5}, r"ranking\.margin=1\.5 lies outside of tune\.space"),
        ({"head.dropout": 0.5}, r"head\.dropout is not in tune\.space"),
    ):
        with pytest.raises(ParamsError, match=message):
            run(tmp_path / "s", upstream, loop, winners=[winner])


def test_a_space_that_holds_no_more_ends_the_study(tmp_path: Path, upstream: Upstream) -> None:
    params = with_tune(
        space={"ranking.margin": {"choices": [0.25, 0.5]}, "ranking.top_k": {"low": 1, "high": 2}},
        pruner="none",
    )
    loop = FormulaLoop()
    lines = run(tmp_path / "s", upstream, loop, trials=9, params=params)
    assert sorted((seen.ranking.margin, seen.ranking.top_k) for seen in loop.seen) == [
        (0.25, 1),
        (0.25, 2),
        (0.5, 1),
        (0.5, 2),
    ]
    assert lines[-2:] == [
        "every suggestion was tried before; the space holds no more",
        "4 trials: 4 complete, 0 pruned, 0 failed; pruning saved 0 of 8 rounds",
    ]


@pytest.mark.parametrize("changes", [{}, {"folds": 3, "seeds": 2}])
def test_a_bad_trial_is_pruned_and_what_that_saved_is_said(
    tmp_path: Path, upstream: Upstream, changes: dict[str, int]
) -> None:
    lines = run(tmp_path / "s", upstream, FormulaLoop(), trials=12, params=with_tune(**changes))
    table = table_of(tmp_path / "s")
    planned = 2 * changes.get("folds", 1) * changes.get("seeds", 1)
    pruned = table[table["state"] == "pruned"]
    assert len(pruned) and (pruned["rounds"] == planned / 2).all() and 0 not in pruned.index
    assert any(f"pruned after {planned // 2} rounds, validation AUC" in line for line in lines)
    assert lines[-1].endswith(
        f"pruning saved {12 * planned - table['rounds'].sum()} of {12 * planned} rounds"
    )


def test_a_trial_that_is_too_dear_stops_and_is_not_the_best(
    tmp_path: Path, upstream: Upstream
) -> None:
    params = with_tune(max_cost=500, pruner="none")
    run(tmp_path / "s", upstream, FormulaLoop(), trials=12, params=params)
    table = table_of(tmp_path / "s")
    assert (
        (table["cost"] > 500).any()
        and (table[table["best"]]["cost"] <= 500).all()
        and table["best"].sum() == 1
    )


def test_of_value_and_cost_the_front_is_the_best(tmp_path: Path, upstream: Upstream) -> None:
    params = with_tune(cost="objective", pruner="none")
    run(tmp_path / "s", upstream, FormulaLoop(), trials=12, params=params)
    table = table_of(tmp_path / "s")
    surpassed = [
        bool(
            (
                (table["value"] >= row.value) & (table["cost"] < row.cost)
                | (table["value"] > row.value) & (table["cost"] <= row.cost)
            ).any()
        )
        for row in table.itertuples()
    ]
    assert table["best"].tolist() == [not worse for worse in surpassed] and table["best"].sum() > 1


def test_a_failed_trial_is_told_and_the_study_goes_on(tmp_path: Path, upstream: Upstream) -> None:
    lines = run(
        tmp_path / "s",
        upstream,
        FormulaLoop(stop=(2, MiningError("nothing above the threshold"))),
        trials=4,
    )
    assert lines[1] == "trial 1: failed: nothing above the threshold"
    table = table_of(tmp_path / "s")
    assert (
        table["state"].tolist().count("failed") == 1
        and table["reason"][1] == "nothing above the threshold"
    )


def test_a_value_that_is_no_number_fails_the_trial(tmp_path: Path, upstream: Upstream) -> None:
    class NoNumber(FormulaLoop):
        def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
            yield RoundResult(0, float("nan"), 0.5, Path(), Path(), Path(), 0.0)

    with pytest.raises(
        StudyError,
        match=(
            r"all 5 trials failed, 5 of them so: after 1 rounds validation AUC nan and log loss"
            r" 0\.5 are no numbers"
        ),
    ):
        run(tmp_path / "s", upstream, NoNumber())


def test_a_study_stops_when_all_trials_fail(tmp_path: Path, upstream: Upstream) -> None:
    class Failing(FormulaLoop):
        def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
            self.seen.append(params)
            raise MiningError(
                "nothing above the threshold" if len(self.seen) != 3 else "something else"
            )

    with pytest.raises(
        StudyError,
        match=(
            r"all 5 trials failed, 4 of them so: nothing above the threshold; mend that or narrow"
            r" tune\.space"
        ),
    ):
        run(tmp_path / "s", upstream, Failing(), trials=20)


def test_other_data_params_or_space_are_refused_by_name(tmp_path: Path, upstream: Upstream) -> None:
    run(tmp_path / "s", upstream, FormulaLoop(), trials=1)
    other = with_tune(space={"ranking.margin": {"low": 0.0, "high": 0.875}})
    for params, name in (
        (tiny_params(finetune={"epochs": 2}), "params"),
        (other, "params, space"),
        (with_tune(folds=2), "params"),
    ):
        with pytest.raises(
            StudyError,
            match=(
                rf"the study s was begun with other {name}, so its values say nothing of these;"
                r" begin another by --study"
            ),
        ):
            run(tmp_path / "s", upstream, FormulaLoop(), params=params)
    elsewhere = tmp_path / "data"
    make_upstream(elsewhere)
    labels = elsewhere / "cohort" / "labels" / "train.csv"
    labels.write_text(labels.read_text().replace("train_0,0", "train_0,1"))
    with pytest.raises(StudyError, match=r"begun with other train labels, so"):
        run(tmp_path / "s", Upstream(elsewhere.parent), FormulaLoop())


def test_a_study_goes_on_after_its_winner_went_into_params_yaml(
    tmp_path: Path, upstream: Upstream
) -> None:
    run(tmp_path / "s", upstream, FormulaLoop(), trials=3)
    best = best_values(StudyFiles(tmp_path / "s"))
    applied = tiny_params(ranking={"top_k": 2, "margin": best["ranking.margin"]})
    loop = FormulaLoop()
    run(tmp_path / "s", upstream, loop, trials=4, params=applied)
    assert len(loop.seen) == 1 and table_of(tmp_path / "s")["ranking.margin"][0] == 0.5


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite:///{}/file/s.db",
        "nonsense",
        "postgresql://u:secret@127.0.0.1:1/x",
        "sqlite:///file:{}/s.db?mode=ro&uri=true",
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, upstream: Upstream, storage: str
) -> None:
    (tmp_path / "file").touch()
    if "mode=ro" in storage:
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(
        StudyError,
        match=(
            r"the storage .* cannot be used \(.*check --storage, whether its server answers, and"
            r" whether its file can be written"
        ),
    ) as error:
        run(tmp_path / "s", upstream, FormulaLoop(), storage=storage.format(tmp_path))
    assert "secret" not in str(error.value)


def test_a_folder_of_studies_that_cannot_be_written_is_named(
    tmp_path: Path, upstream: Upstream
) -> None:
    (tmp_path / "studies").touch()
    with pytest.raises(
        StudyError,
        match=r"studies/s cannot be written \(Not a directory\); make its folder writable",
    ):
        run(tmp_path / "studies" / "s", upstream, FormulaLoop())
    files = StudyFiles(tmp_path / "s")
    run(files.folder, upstream, FormulaLoop(), trials=1)
    files.trials.unlink()
    files.trials.mkdir()
    with pytest.raises(StudyError, match=r"s cannot be written \(Is a directory\)"):
        run(files.folder, upstream, FormulaLoop(), trials=2)
    files.trials.rmdir()
    assert run(files.folder, upstream, FormulaLoop(), trials=2)[-1].startswith(
        "2 trials: 2 complete"
    )


def test_a_study_that_is_not_there_is_named_beside_those_that_are(
    tmp_path: Path, upstream: Upstream
) -> None:
    run(tmp_path / "known", upstream, FormulaLoop(), trials=1)
    with pytest.raises(
        StudyError, match=r"there is no study other in .*; there are known; name one by --study"
    ):
        load_study(StudyFiles(tmp_path / "other"), None)
    with pytest.raises(StudyError, match=r"there is no study other in journal:///"):
        load_study(StudyFiles(tmp_path / "other"), StudyFiles(tmp_path / "known").url)


def test_a_study_runs_once_at_a_time(tmp_path: Path, upstream: Upstream) -> None:
    def second(line: str) -> None:
        with pytest.raises(
            StudyError, match=r"the study s is running already; wait for it, or choose another name"
        ):
            run(tmp_path / "s", upstream, FormulaLoop())

    run(tmp_path / "s", upstream, FormulaLoop(), trials=1, say=second)


def test_the_export_is_what_the_study_wrote(tmp_path: Path, upstream: Upstream) -> None:
    run(tmp_path / "s", upstream, FormulaLoop(), trials=4)
    files = StudyFiles(tmp_path / "s")
    written = {path: path.read_bytes() for path in (files.trials, files.best)}
    for path in written:
        path.unlink()
    pictures = []
    for _ in range(2):
        export(files, load_study(files, None), plots=True)
        pictures.append({path.name: path.read_bytes() for path in files.plots.iterdir()})
    assert {path: path.read_bytes() for path in written} == written
    assert pictures[0] == pictures[1] and set(pictures[0]) == {
        f"{name}.png"
        for name in ("history", "importance", "parallel_coordinate", "slice", "pareto")
    }


def test_workers_share_a_study_and_one_that_is_killed_stops_none(
    tmp_path: Path, upstream: Upstream
) -> None:
    log = tmp_path / "log"
    lines = run(
        tmp_path / "s",
        upstream,
        FormulaLoop(log=log, kill_at=3),
        trials=8,
        workers=2,
        say=_Lines(tmp_path / "lines"),
    )
    lines = (tmp_path / "lines").read_text().splitlines()
    assert sum("was killed (exit code -9); its trial is run again" in line for line in lines) == 1
    assert sum(line.startswith("trial ") for line in lines) == 8
    table = table_of(tmp_path / "s")
    assert (
        len(table) == 8
        and set(table["state"]) <= {"complete", "pruned"}
        and table["ranking.margin"].nunique() == 8
    )
    assert all(trial.state.is_finished() for trial in in_storage(tmp_path / "s"))
    tried = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(tried) == 9 and 0.5 in tried


def test_a_trial_that_others_overtake_has_the_number_that_its_table_gives_it(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first trial runs, another worker asks for the next two and ends them."""
    jobs: list[Job] = []

    def noted(study: optuna.Study, job: Job, worker: str) -> bool:
        jobs.append(job)
        return run_trials(study, job, worker)

    class Overtaken(FormulaLoop):
        def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
            if len(jobs) == 1:
                work(replace(jobs[0], loop=FormulaLoop()), "1")
            yield from super().rounds(params, fold)

    for module in ("study", "trials"):
        monkeypatch.setattr(f"hnm.studies.{module}.run_trials", noted)
    lines = run(tmp_path / "s", upstream, Overtaken(), trials=3, params=with_tune(pruner="none"))
    assert [line.partition(":")[0] for line in lines[:3]] == ["trial 1", "trial 2", "trial 0"]
    aucs = table_of(tmp_path / "s")["validation_auc"]
    assert aucs.nunique() == 3 and all(
        f"AUC {aucs[int(line.split()[1][:-1])]:.4f}," in line for line in lines[:3]
    )


class _Lines:
    """Where several processes say their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        with self.path.open("a") as stream:
            stream.write(f"{line}\n")


def test_a_study_over_the_real_loop(tmp_path: Path, upstream: Upstream) -> None:
    lines = run(tmp_path / "s", upstream, Loop(upstream, Store(tmp_path / "store")), trials=2)
    assert len(lines) == 3 and not any(": failed: " in line for line in lines)
