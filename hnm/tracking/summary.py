"""The run that sums up a state of the whole pipeline: its name, its content and its key.

The stage `evaluate` writes its record, so that each state that is evaluated has one, in experiments
of DVC too. What only MLflow knows, the other states and the ids of the stages' runs, is filled in
when the record is brought.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hnm.files import key_of
from hnm.params import flat
from hnm.repository.stages import StageState, outs_of

if TYPE_CHECKING:
    from mlflow.entities import Run

NAMED = 3
"""Params that the name of a state holds at most."""


def state_key(states: Mapping[str, StageState]) -> str:
    """Digest of a state of the whole pipeline; the tag `hnm.state_key` of its summary."""
    return key_of(stages={name: state.key for name, state in states.items()})


def summary_run(
    states: Mapping[str, StageState], experiment: str, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Content of the event `start` of a summary; its name, and the links to the runs of `stages`,
    are made where it is brought.
    """
    key = state_key(states)
    return {
        "experiment": experiment,
        "name": "summary",
        "tags": {"hnm.kind": "summary", "hnm.state_key": key, **tags},
        "params": state_params(states),
        "inputs": [],
        "identity": f"summary-{key[:32]}",
        "stages": {name: state.key for name, state in states.items()},
    }


def state_params(states: Mapping[str, StageState]) -> dict[str, str]:
    """The params that the stages of a state use, as MLflow holds them."""
    sections = {
        name: section for state in states.values() for name, section in state.params.items()
    }
    return {name: str(value) for name, value in flat_params(sections).items()}


def disagreeing(states: Mapping[str, StageState]) -> list[str]:
    """The stages that ran on another version of an output than the stage that makes it has last
    written; folders of several outputs are not looked at.
    """
    written = outs_of(states)
    return [
        name
        for name, state in states.items()
        if any(written.get(path, md5) != md5 for path, md5 in state.deps.items())
    ]


def state_name(params: Mapping[str, str], others: Mapping[str, Mapping[str, str]], key: str) -> str:
    """The name that tells a state from the first one: the params that differ.

    Args:
        params: the state's flattened params.
        others: name -> params of the states summed up before, the first first.
        key: the state's key; its beginning ends a name that is taken.
    """
    if not others:
        return "baseline"
    first = next(iter(others.values()))
    changed = [
        f"{name}={params.get(name, 'none')}"
        for name in sorted(params.keys() | first.keys())
        if params.get(name) != first.get(name)
    ]
    if not changed:
        return f"baseline, other code or slides {key[:7]}"
    name = ", ".join(changed[:NAMED])
    if len(changed) > NAMED:
        name += f" and {len(changed) - NAMED} more"
    return f"{name} {key[:7]}" if name in others else name


def links(runs: Mapping[str, "Run"]) -> dict[str, str]:
    """The tags of a summary that link the runs of its stages, and its description with the same
    links.
    """
    tags = {f"hnm.run.{stage.replace('@', '.')}": run.info.run_id for stage, run in runs.items()}
    rows = [
        f"| {markdown(stage)} | [{markdown(run.info.run_name)}]"
        f"(#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}) |"
        for stage, run in runs.items()
    ]
    return {**tags, "mlflow.note.content": "\n".join(("| stage | run |", "|---|---|", *rows))}


def in_reading_order(stages: Iterable[str]) -> list[str]:
    """Stages by name, `evaluate` last."""
    return sorted(stages, key=lambda name: (name == "evaluate", name))


def flat_params(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Params with dotted names; of the rounds, their number."""
    rounds = sections.get("rounds")
    if isinstance(rounds, Mapping):
        sections = {**sections, "rounds": len(rounds)}
    return flat(sections)


def markdown(text: object) -> str:
    """`text` as Markdown that says just that: no markup, no HTML, no end of a table's cell."""
    line = " ".join(str(text).split())
    return "".join(
        f"&#{ord(letter)};" if letter in "\\`*_{}[]()<>#|!~&$\"'" else letter for letter in line
    )
