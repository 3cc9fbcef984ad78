"""Where an output comes from and what was made of it: dvc.lock read as a graph, with MLflow's runs
beside its stages.

Stages are joined by the paths that they write and read; a folder that several stages write into is
read as all of them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hnm.errors import TableError, TrackingError
from hnm.repository.stages import StageState, cohort_name, locked_stages
from hnm.tables import SLIDES
from hnm.tracking.record import first_line
from hnm.tracking.runs import connect, finished_run, has_store, store_errors, tracking_uri
from hnm.tracking.summary import flat_params

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class StageRun:
    """The run of a stage in MLflow."""

    name: str
    run_id: str
    commit: str | None
    """Of the code that ran; None of a run that was made from the files."""


@dataclass(frozen=True)
class Lineage:
    """One stage execution with all that stands before and after it, each in the order of
    execution.
    """

    target: str
    stage: StageState
    before: list[StageState]
    after: list[StageState]
    runs: Mapping[str, StageRun]
    """By DVC's name, of the stages that have one."""
    models: Mapping[str, str]
    """Version of the registered model, by what it is called there -> the stage that made its head;
    those of the stage and of what came of it.
    """
    slides: str
    """What the cohort is, in words."""


def lineage(root: Path, target: str) -> Lineage:
    """The lineage of `target`: an output or a file in one, a stage of dvc.lock (`head@1`), the id
    of a stage's run, or a registered model.

    Raises:
        TrackingError: nothing of that name is known.
    """
    states = locked_stages(root)
    name = _stage_of(root, target, states)
    state = states[name]
    before, after = (
        _reached(name, neighbours)
        for neighbours in (_neighbours(states, forward=False), _neighbours(states, forward=True))
    )
    order = in_order(states)
    involved, came = (
        [states[other] for other in order if other in names]
        for names in (before | after | {name}, after | {name})
    )
    return Lineage(
        target,
        state,
        [states[other] for other in order if other in before],
        [states[other] for other in order if other in after],
        _runs(root, states, involved),
        _models(root, states, came),
        _slides(root, states),
    )


def as_text(found: Lineage) -> str:
    """The lineage as lines: the stage itself, what it comes from back to the slides, and what was
    made of it.
    """
    lines = [f"{found.target} was made by", *_described(found.stage, found.runs), "", "from"]
    for state in reversed(found.before):
        lines += _described(state, found.runs)
    lines += [
        f"  {found.slides}",
        "",
        "of it came" if found.after or found.models else "nothing was made of it",
    ]
    for state in found.after:
        lines += _described(state, found.runs)
    lines += [f"  {model}, by {head}" for model, head in found.models.items()]
    return "\n".join(map(_printable, lines))


def as_mermaid(found: Lineage) -> str:
    """The lineage as a Mermaid flowchart, as GitHub and MLflow's descriptions draw it; the stage
    itself stands out.
    """
    states = [*found.before, found.stage, *found.after]
    ids = {name: f"<br/>{_text(run.run_id[:8])}" for name, run in found.runs.items()}
    labels = {state.name: f"{_text(state.name)}{ids.get(state.name, '')}" for state in states}
    nodes = [f'    {_node(name)}["{label}"]' for name, label in labels.items()]
    nodes += [f'    model{number}(["{_text(model)}"])' for number, model in enumerate(found.models)]
    edges = [
        f"    {_node(head)} --> model{number}" for number, head in enumerate(found.models.values())
    ]
    edges += [
        f"    {_node(maker)} --> {_node(state.name)}"
        for state in states
        for maker in sorted(_makers(state, {other.name: other for other in states}))
    ]
    return "\n".join(
        [
            "flowchart LR",
            '    slides(["slides"])',
            *nodes,
            *(["    slides --> cohort"] if "cohort" in labels else []),
            *edges,
            f"    style {_node(found.stage.name)} stroke-width:3px",
        ]
    )


def in_order(states: Mapping[str, StageState]) -> list[str]:
    """The stages, each after those whose outputs it reads."""
    placed: list[str] = []
    waiting = sorted(states)
    while waiting:
        ready = [
            name for name in waiting if not (_makers(states[name], states) & set(waiting)) - {name}
        ]
        placed += ready
        waiting = [name for name in waiting if name not in ready]
        if not ready:
            raise TrackingError(
                f"dvc.lock has a circle of stages: {', '.join(waiting)}; run dvc repro"
            )
    return placed


def _makers(state: StageState, states: Mapping[str, StageState]) -> set[str]:
    """The stages whose outputs `state` reads, in whole or as part of a folder."""
    return {
        other.name
        for other in states.values()
        for out in other.outs
        for path in state.data
        if out == path or out.startswith(f"{path}/")
    }


def _neighbours(states: Mapping[str, StageState], *, forward: bool) -> Callable[[str], set[str]]:
    makers = {name: _makers(state, states) for name, state in states.items()}
    if not forward:
        return makers.__getitem__
    return lambda name: {other for other, own in makers.items() if name in own}


def _reached(start: str, neighbours: Callable[[str], Collection[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = set(neighbours(waiting.pop())) - found
        found |= fresh
        waiting += fresh
    return found - {start}


def _stage_of(root: Path, target: str, states: Mapping[str, StageState]) -> str:
    if target in states:
        return target
    if target.startswith("models:/"):
        return _stage_of_model(root, target, states)
    path = Path(target)
    inside = (
        (
            path.resolve().relative_to(root.resolve())
            if path.is_absolute() or path.exists()
            else path
        )
        if path.resolve().is_relative_to(root.resolve())
        else path
    )
    for name, state in states.items():
        if any(inside == Path(out) or Path(out) in inside.parents for out in state.outs):
            return name
    if run := _run(root, target):
        key = run.data.tags.get("hnm.stage_key")
        made = [name for name, state in states.items() if state.key == key]
        if made:
            return made[0]
        raise TrackingError(
            f"the run {run.info.run_name} is of another state than dvc.lock; check out the commit"
            " that has it, then dvc checkout"
        )
    raise TrackingError(
        f"{target} is no output of dvc.lock, none of its stages ({', '.join(states)}), and no run"
        f" in {tracking_uri(root)}"
    )


def _stage_of_model(root: Path, uri: str, states: Mapping[str, StageState]) -> str:
    name, _, version = uri.removeprefix("models:/").replace("@", "/").partition("/")
    for found in _versions(root, name):
        if version == str(found.version) or version in found.aliases:
            made = [
                other
                for other, head in _heads(states).items()
                if head == found.tags.get("hnm.head")
            ]
            if made:
                return made[0]
            raise TrackingError(
                f"{uri} was made by another state than dvc.lock; check out the commit that has it"
                " (hnm predict tells it), then dvc checkout"
            )
    raise TrackingError(f"{uri} is not registered in {tracking_uri(root)}")


def _models(
    root: Path, states: Mapping[str, StageState], came: Collection[StageState]
) -> dict[str, str]:
    """The versions of the registered model whose head one of the stages `came` has made."""
    stage_of = {head: name for name, head in _heads({state.name: state for state in came}).items()}
    versions = sorted(
        _versions(root, f"hnm-{cohort_name(states, '')}"), key=lambda version: int(version.version)
    )
    called = {
        version.version: f" ({', '.join(sorted(version.aliases))})" if version.aliases else ""
        for version in versions
    }
    found = [version for version in versions if version.tags.get("hnm.head") in stage_of]
    return {
        f"models:/{version.name}/{version.version}{called[version.version]}": stage_of[
            version.tags["hnm.head"]
        ]
        for version in found
    }


def _heads(states: Mapping[str, StageState]) -> dict[str, str]:
    """Stage -> md5 of the head that it made."""
    return {
        name: state.output("folder")[1] for name, state in states.items() if state.stage == "head"
    }


def _versions(root: Path, name: str) -> "list[ModelVersion]":
    if not has_store(root):
        return []
    try:
        client = connect(root)
        aliases: dict[str, list[str]] = defaultdict(list)
        for model in client.search_registered_models(f"name = '{name}'"):
            for alias, version in model.aliases.items():
                aliases[str(version)].append(alias)
        found = client.search_model_versions(f"name = '{name}'")
    except store_errors() as error:
        raise TrackingError(
            f"the models at {tracking_uri(root)} cannot be read: {first_line(error)}"
        ) from None
    for version in found:
        version.aliases = aliases[str(version.version)]
    return list(found)


def _run(root: Path, run_id: str) -> "Run | None":
    if not has_store(root):
        return None
    try:
        return connect(root).get_run(run_id)
    except store_errors():
        return None


def _runs(
    root: Path, states: Mapping[str, StageState], involved: Collection[StageState]
) -> dict[str, StageRun]:
    """The runs of stages; none where there is no store."""
    if not has_store(root):
        return {}
    try:
        client = connect(root)
        found = {
            state.name: finished_run(client, cohort_name(states, ""), "hnm.stage_key", state.key)
            for state in involved
        }
    except store_errors() as error:
        raise TrackingError(
            f"the runs at {tracking_uri(root)} cannot be read: {first_line(error)}"
        ) from None
    return {
        name: StageRun(
            run.info.run_name, run.info.run_id, run.data.tags.get("mlflow.source.git.commit")
        )
        for name, run in found.items()
        if run is not None
    }


def _slides(root: Path, states: Mapping[str, StageState]) -> str:
    if "cohort" not in states:
        return "the slides of the manifest"
    path = states["cohort"].output("slides")[0]
    try:
        table = SLIDES.read(root / path)
    except (TableError, OSError, ValueError):
        return "the slides of the manifest (their table is not here; dvc pull brings it)"
    return (
        f"{len(table)} slides of {table['patient_id'].nunique()} patients, by their fingerprints in"
        f" {path}"
    )


def _described(state: StageState, runs: Mapping[str, StageRun]) -> Iterator[str]:
    yield f"  {state.name}"
    if run := runs.get(state.name):
        yield f"    run     {run.name} {run.run_id}" + (
            f", code {run.commit}" if run.commit else ""
        )
    if state.params:
        yield (
            "    params "
            f" {', '.join(f'{name}={value}' for name, value in flat_params(state.params).items())}"
        )
    for path, md5 in state.outs.items():
        yield f"    wrote   {path} {md5}"


def _node(name: str) -> str:
    """A stage's name as an identifier of Mermaid's; names of dvc.lock may be anyone's text."""
    word = re.sub(r"[^A-Za-z0-9_]", lambda letter: f"_x{ord(letter[0])}_", name.replace("@", "_r"))
    return (
        f"stage_{word}"
        if word.lower()
        in ("end", "graph", "subgraph", "style", "class", "click", "default", "slides")
        else word
    )


def _text(name: str) -> str:
    """`name` as text in a Mermaid label, which would else take quotes and HTML for markup."""
    return re.sub(r"[^A-Za-z0-9 ._@:/(),=+-]", lambda letter: f"#{ord(letter[0])};", name)


def _printable(line: str) -> str:
    """A line without control characters, which names in MLflow may hold and a terminal obeys."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in line)
