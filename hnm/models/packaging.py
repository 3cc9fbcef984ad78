"""A round of the pipeline as a model folder, with the versions of all data that it comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnm.errors import PredictionError
from hnm.files import read_json
from hnm.params import Cohort, Compute, Embed, SectionT, Tiles, Tissue, check_section
from hnm.prediction.model import ModelRecord, write_model
from hnm.repository.outputs import Outputs, taking_apart
from hnm.repository.stages import StageState, git_tags, locked_stages, stage_in


def package_round(root: Path, round_: int | None, folder: Path) -> ModelRecord:
    """Writes the model of a round into `folder` and returns its record. The files are those that
    dvc.lock names, from the workspace or else from DVC's cache.

    Args:
        root: the repository.
        round_: the round; None takes the one that validation has chosen.
        folder: new or empty.

    Raises:
        PredictionError: the round was not trained and evaluated, or its stages ran on different
        versions of their inputs.
    """
    states = locked_stages(root)
    if "evaluate" not in states:
        raise PredictionError(
            f"{root / 'dvc.lock'} holds no evaluation, which gives a model its threshold; run dvc"
            " repro"
        )
    outputs = Outputs(root)
    metrics, md5 = states["evaluate"].output("metrics")
    (metrics_file,) = outputs.files(metrics, md5).values()
    content = read_json(metrics_file, PredictionError)
    with taking_apart(metrics, PredictionError):
        name = str(content["chosen_round"] if round_ is None else round_)
        if name not in content["rounds"] or f"head@{name}" not in states:
            raise PredictionError(
                f"round {name} was not evaluated; {metrics} knows the rounds"
                f" {', '.join(sorted(content['rounds'], key=int))}"
            )
    head = states[f"head@{name}"]
    embed = stage_in(states, f"embed@{name}")
    with taking_apart(f"dvc.lock, or {metrics},", PredictionError):
        record = _record(states, name, content["rounds"][name], _commit(root))
    encoder = embed.argument("encoder")
    if encoder not in embed.deps:
        raise PredictionError(
            f"{embed.name} of dvc.lock does not depend on {encoder}; run dvc repro"
        )
    encoder_files = outputs.files(encoder, embed.deps[encoder])
    write_model(record, encoder_files, outputs.files(*head.output("folder")), folder)
    return record


def _record(
    states: Mapping[str, StageState], name: str, numbers: Mapping[str, Any], commit: str | None
) -> ModelRecord:
    """Returns the record of the round `name`; `numbers` are those of the round in metrics.json."""
    head, embed, cohort, tiles = (
        stage_in(states, stage) for stage in (f"head@{name}", f"embed@{name}", "cohort", "tiles")
    )
    return ModelRecord(
        cohort=cohort.section("cohort")["name"],
        round=name,
        threshold=numbers["threshold"],
        mpp_from_objective=_section(cohort, Cohort, "cohort").mpp_from_objective,
        tissue=_section(tiles, Tissue, "tissue"),
        tiles=_section(tiles, Tiles, "tiles"),
        embed=_section(embed, Embed, "embed"),
        compute=_section(embed, Compute, "compute"),
        validation={
            metric: value
            for metric, value in numbers["validation"].items()
            if isinstance(value, float)
        },
        versions=versions_of(states, head),
        commit=commit,
    )


def _section(state: StageState, kind: type[SectionT], name: str) -> SectionT:
    """Returns a section that a stage used. An earlier version of hnm may have had other fields."""
    where = (
        f"{state.name} of dvc.lock, which another version of hnm may have written (run dvc repro)"
    )
    return check_section(kind, name, state.section(name), where=where)


def cards_of(root: Path, round_: str) -> dict[str, Path]:
    """Returns the cards that `evaluate` wrote, by file name: the data card, and the model card
    where it is of this round. There are none without an evaluation.
    """
    states = locked_stages(root)
    if "evaluate" not in states:
        return {}
    evaluate = states["evaluate"]
    outputs = Outputs(root)

    def file(name: str) -> Path:
        (card,) = outputs.files(*evaluate.output(name)).values()
        return card

    with taking_apart(evaluate.argument("metrics"), PredictionError):
        chosen = str(read_json(file("metrics"), PredictionError)["chosen_round"])
    cards = ["data_card", "model_card"] if round_ == chosen else ["data_card"]
    return {f"{name}.md": file(name) for name in cards if name in evaluate.arguments}


def versions_of(states: Mapping[str, StageState], head: StageState) -> dict[str, str]:
    """Returns path -> md5 of the outputs of the stage `head`, and of all data that they were made
    from by the stages before it.

    Raises:
        PredictionError: a stage ran on another version of its input than the stage before it has
            last written.
    """
    maker_of = {path: state for state in states.values() for path in state.outs}
    path, md5 = head.output("folder")
    versions = {path: md5}
    waiting = [head]
    while waiting:
        state = waiting.pop()
        for path, md5 in state.data.items():
            maker = maker_of.get(path)
            if maker is not None and maker.outs[path] != md5:
                raise PredictionError(
                    f"{state.name} ran on {path} of md5 {md5}, but {maker.name} has written"
                    f" {maker.outs[path]} since; run dvc repro"
                )
            if path not in versions:
                versions[path] = md5
                if maker is not None:
                    waiting.append(maker)
    return dict(sorted(versions.items()))


def _commit(root: Path) -> str | None:
    """Returns the commit of the repository; None where it has none."""
    tags = git_tags(root)
    if not tags:
        return None
    dirty = "-dirty" if tags["hnm.git_dirty"] == "true" else ""
    return tags["mlflow.source.git.commit"] + dirty
