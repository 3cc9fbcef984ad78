"""Where an output comes from and what was made of it: dvc.lock read as a graph, with MLflow's runs
beside its stages.

Stages are joined by the paths that they write and read. A stage that reads a folder reads all
stages that write into it.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from hnm.errors import TableError, TrackingError
from hnm.redaction import readable
from hnm.repository.stages import StageState, cohort_name, locked_stages
from hnm.tables import SLIDES
from hnm.tracking.connection import tracking_uri
from hnm.tracking.lookup import StageRun, model_versions, run_of_id, stage_runs
from hnm.tracking.summary import flat_params

MERMAID_WORDS = ["end", "graph", "subgraph", "style", "class", "click", "default", "slides"]
"""Words that are no identifiers in a flowchart of ours."""
Graph = Mapping[str, Set[str]]
"""Stage -> the stages next to it."""


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
    """Version of the registered model, with its aliases -> the stage that made its head; those of
    the stage and of all stages after it.
    """
    slides: str
    """The cohort in words."""


def lineage(root: Path, target: str) -> Lineage:
    """The lineage of `target`: an output or a file in one, a stage of dvc.lock (`head@1`), the id
    of a stage's run, or a registered model.

    Raises:
        TrackingError: nothing of that name is there.
    """
    states = locked_stages(root)
    name = _stage_of(root, target, states)
    makers = {other: _makers(state, states) for other, state in states.items()}
    readers = {
        maker: {reader for reader, sources in makers.items() if maker in sources}
        for maker in states
    }
    order = in_order(states)
    names_before = _reached(name, makers)
    names_after = _reached(name, readers)
    before = [states[other] for other in order if other in names_before]
    after = [states[other] for other in order if other in names_after]
    stage = states[name]
    keys = {state.name: state.key for state in (*before, stage, *after)}
    return Lineage(
        target,
        stage,
        before,
        after,
        stage_runs(root, cohort_name(states, ""), keys),
        _models(root, cohort_name(states, ""), {state.name: state for state in (stage, *after)}),
        _slides(root, states),
    )


def as_text(lineage: Lineage) -> str:
    """The lineage as lines: the stage itself, what it comes from back to the slides, and what was
    made of it.
    """
    lines = [f"{lineage.target} was made by", *_described(lineage.stage, lineage.runs), "", "from"]
    for state in reversed(lineage.before):
        lines += _described(state, lineage.runs)
    led_to_any = lineage.after or lineage.models
    lines += [f"  {lineage.slides}", "", "of it came" if led_to_any else "nothing was made of it"]
    for state in lineage.after:
        lines += _described(state, lineage.runs)
    lines += [f"  {model}, by {head}" for model, head in lineage.models.items()]
    return "\n".join(map(readable, lines))


def as_mermaid(lineage: Lineage) -> str:
    """The lineage as a Mermaid flowchart, as GitHub and MLflow's descriptions draw it; the stage
    itself stands out.
    """
    states = {state.name: state for state in (*lineage.before, lineage.stage, *lineage.after)}
    lines = ["flowchart LR", '    slides(["slides"])']
    for name in states:
        label = _text(name)
        if name in lineage.runs:
            label += f"<br/>{_text(lineage.runs[name].run_id[:8])}"
        lines.append(f'    {_node(name)}["{label}"]')
    for number, model in enumerate(lineage.models):
        lines.append(f'    model{number}(["{_text(model)}"])')
    if "cohort" in states:
        lines.append("    slides --> cohort")
    for number, head in enumerate(lineage.models.values()):
        lines.append(f"    {_node(head)} --> model{number}")
    for name, state in states.items():
        makers = sorted(_makers(state, states))
        lines += [f"    {_node(maker)} --> {_node(name)}" for maker in makers]
    return "\n".join([*lines, f"    style {_node(lineage.stage.name)} stroke-width:3px"])


def in_order(states: Mapping[str, StageState]) -> list[str]:
    """The stages, each after those whose outputs it reads."""
    makers = {name: sorted(_makers(states[name], states) - {name}) for name in sorted(states)}
    try:
        return list(TopologicalSorter(makers).static_order())
    except CycleError as error:
        raise TrackingError(
            f"dvc.lock has a circle of stages: {', '.join(error.args[1])}; run dvc repro"
        ) from None


def _makers(state: StageState, states: Mapping[str, StageState]) -> set[str]:
    """The stages whose outputs `state` reads, in whole or as part of a folder."""
    return {
        other.name
        for other in states.values()
        for out in other.outs
        for path in state.data
        if out == path or out.startswith(f"{path}/")
    }


def _reached(start: str, graph: Graph) -> set[str]:
    """The stages that can be reached from `start`, without it."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - reached
        reached |= fresh
        waiting += fresh
    return reached - {start}


def _stage_of(root: Path, target: str, states: Mapping[str, StageState]) -> str:
    if target in states:
        return target
    if target.startswith("models:/"):
        return _stage_of_model(root, target, states)
    path = Path(target)
    if (path.is_absolute() or path.exists()) and path.resolve().is_relative_to(root.resolve()):
        path = path.resolve().relative_to(root.resolve())
    for name, state in states.items():
        if any(path.is_relative_to(out) for out in state.outs):
            return name
    run = run_of_id(root, target)
    if run is None:
        raise TrackingError(
            f"{target} is no output of dvc.lock, none of its stages ({', '.join(states)}), and no"
            f" run in {tracking_uri(root)}"
        )
    for name, state in states.items():
        if state.key == run.stage_key:
            return name
    raise TrackingError(
        f"the run {run.name} is of another state than dvc.lock; check out the commit that has it,"
        " then dvc checkout"
    )


def _stage_of_model(root: Path, uri: str, states: Mapping[str, StageState]) -> str:
    name, _, wanted = uri.removeprefix("models:/").replace("@", "/").partition("/")
    for version in model_versions(root, name):
        if wanted != str(version.version) and wanted not in version.aliases:
            continue
        if version.head in (stage_of := _stage_of_head(states)):
            return stage_of[version.head]
        raise TrackingError(
            f"{uri} was made by another state than dvc.lock; check out the commit that has it"
            " (hnm predict tells it), then dvc checkout"
        )
    raise TrackingError(f"{uri} is not registered in {tracking_uri(root)}")


def _models(root: Path, cohort: str, states: Mapping[str, StageState]) -> dict[str, str]:
    """The versions of the registered model whose head one of these stages has made."""
    stage_of = _stage_of_head(states)
    models = {}
    for version in model_versions(root, f"hnm-{cohort}"):
        if version.head in stage_of:
            aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
            models[f"{version.uri}{aliases}"] = stage_of[version.head]
    return models


def _stage_of_head(states: Mapping[str, StageState]) -> dict[str | None, str]:
    """DVC's md5 of a head -> the stage that made it."""
    heads = [state for state in states.values() if state.stage == "head"]
    return {state.output("folder")[1]: state.name for state in heads}


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
        code = f", code {run.commit}" if run.commit else ""
        yield f"    run     {run.name} {run.run_id}{code}"
    if state.params:
        params = [f"{name}={value}" for name, value in flat_params(state.params).items()]
        yield f"    params  {', '.join(params)}"
    for path, md5 in state.outs.items():
        yield f"    wrote   {path} {md5}"


def _node(name: str) -> str:
    """A stage's name as an identifier of Mermaid's; names of dvc.lock may be anyone's text."""
    word = re.sub(r"[^A-Za-z0-9_]", lambda letter: f"_x{ord(letter[0])}_", name.replace("@", "_r"))
    return f"stage_{word}" if word.lower() in MERMAID_WORDS else word


def _text(name: str) -> str:
    """`name` as text in a Mermaid label, which would else take quotes and HTML for markup."""
    return re.sub(r"[^A-Za-z0-9 ._@:/(),=+-]", lambda letter: f"#{ord(letter[0])};", name)
