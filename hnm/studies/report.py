"""The report of a study: whether its best trials are better than params.yaml with fresh seeds."""

from collections.abc import Callable
from pathlib import Path

from hnm.evidence.numbers.intervals import Resampling
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.winner import judged, report_markdown
from hnm.files import whole
from hnm.loop.rounds import Fold, Loop, Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.studies.files import StudyFiles, load_study, read_trials, written
from hnm.studies.finalists import Race, run_finalists
from hnm.studies.folds import folds_of
from hnm.studies.identity import check_identity, identity_of
from hnm.studies.space import with_values
from hnm.tables import LABELS, SLIDE_SCORES, SLIDES


def write_report(
    files: StudyFiles,
    params: Params,
    upstream: Upstream,
    store: Store,
    race: Race,
    storage: str | None,
    say: Callable[[str], None],
) -> str:
    """Runs the finalists of a study again, and writes and returns its report.

    Raises:
        StudyError: there is no such study, it was begun with other data, params or code, it has no
        trial to compare, or a run fails.
    """
    study = load_study(files, storage)
    check_identity(study, identity_of(params, upstream))
    params = with_values(params, study.user_attrs["defaults"])
    folds = folds_of(upstream, params.tune.folds, params.tune.seed, store)
    slides = SLIDES.read(upstream.paths.cohort.slides)

    def judge(scores: Path, fold: Fold) -> Predictions:
        return judged(SLIDE_SCORES.read(scores), LABELS.read(fold.validation), slides)

    finalists = run_finalists(files, params, Loop(upstream, store), folds, race, judge, say)
    trials, _ = read_trials(files)
    report = report_markdown(
        files.name,
        finalists,
        int((trials["state"] != "failed").sum()),
        Resampling.of(params.evaluate, "study"),
    )
    with written(files.report), whole(files.report) as temporary:
        temporary.write_text(report, encoding="utf-8")
    return report
