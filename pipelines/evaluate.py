"""Stage `evaluate`: what each round is worth. It alone opens test labels and annotations."""

from collections.abc import Collection
from pathlib import Path

from hnm import params
from hnm.loop.evaluate import Provenance, Settings
from hnm.loop.evaluate import evaluate as evaluate_files
from hnm.loop.paths import EvaluateFiles
from hnm.project import project_root
from hnm.repository.stages import git_tags, locked_stages
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    files: EvaluateFiles,
    *,
    rounds: dict[str, params.Round],
    settings: Settings,
    evaluate: params.Evaluate,
    tracker: Tracker,
) -> None:
    """Writes metrics.json, the plots, the cards and the report of the rounds that params.yaml
    names. Most sections are read only to be listed in the cards.
    """
    metrics, looks = evaluate_files(
        files, _provenance(files, rounds), rounds=rounds, settings=settings, section=evaluate
    )
    tracker.evaluation(metrics)
    tracker.metrics({"test/openings": looks.times, "test/opened_states": looks.states})
    for path in (files.metrics, files.plots, files.report, files.model_card, files.data_card):
        tracker.file(path)
    auc = metrics["test"]["auc"]
    print(
        f"validation picks round {metrics['chosen_round']}: test AUC"
        f" {'unknown' if auc is None else format(auc, '.3f')}",
        flush=True,
    )


def _provenance(files: EvaluateFiles, rounds: Collection[str]) -> Provenance:
    """Returns the commit of the code, and what dvc.lock says of the data in `files` that the stages
    of these rounds have made.
    """
    root = project_root()
    tags = git_tags(root)
    versions = [
        (name, path, md5)
        for name, state in sorted(locked_stages(root).items())
        for path, md5 in sorted(state.outs.items())
        if name != "evaluate"
        and name.partition("@")[2] in ("", *rounds)
        and any(Path(path).is_relative_to(file) for file in vars(files).values())
    ]
    return Provenance(
        tags.get("mlflow.source.git.commit", ""), tags.get("hnm.git_dirty", ""), versions
    )


if __name__ == "__main__":
    stage.run(main)
