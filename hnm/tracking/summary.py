"""The run that sums up a state of the whole pipeline: what it is called, what it holds, and what it
is told apart by.

The stage `evaluate` writes its record, so that each state that is evaluated has one, in experiments
of DVC too. What only MLflow knows, the other states and the ids of the stages' runs, is filled in
by who brings the record.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hnm.files import key_of
from hnm.params import flat
from hnm.repository.stages import StageState

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
    sections = {
        name: section for state in states.values() for name, section in state.params.items()
    }
    return {
        "experiment": experiment,
        "name": "summary",
        "tags": {"hnm.kind": "summary", "hnm.state_key": key, **tags},
        "params": {name: str(value) for name, value in flat_params(sections).items()},
        "inputs": [],
        "identity": f"summary-{key[:32]}",
        "stages": {name: state.key for name, state in states.items()},
    }


def disagreeing(states: Mapping[str, StageState]) -> list[str]:
    """The stages that ran on another version of an output than the stage that makes it has last
    written; folders of several outputs are not looked at.
    """
    made = {path: md5 for state in states.values() for path, md5 in state.outs.items()}
    return [
        name
        for name, state in states.items()
        if any(made.get(path, md5) != md5 for path, md5 in state.deps.items())
    ]


def state_name(params: Mapping[str, str], others: Mapping[str, Mapping[str, str]], key: str) -> str:
    """What tells a state from the first one, by name: the params that differ.

    Args:
        params: the state's flattened params.
        others: name -> params of the states summed up before, the first first.
        key: the state's key; its beginning ends a name that is taken.
    """
    if not others:
        return "baseline"
    first = next(iter(others.values()))
    names = [
        name for name in sorted(params.keys() | first.keys()) if params.get(name) != first.get(name)
    ]
    changed = [f"{name}={params.get(name, 'none')}" for name in names]
    name = ", ".join(changed[:NAMED]) + (
        f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    )
    if not name:
        return f"baseline, other code or slides {key[:7]}"
    return f"{name} {key[:7]}" if name in others else name


def links(runs: Mapping[str, "Run"]) -> dict[str, str]:
    """The tags of a summary that link the runs of its stages, and its description with the same
    links.
    """
    return {
        **{f"hnm.run.{stage.replace('@', '.')}": run.info.run_id for stage, run in runs.items()},
        "mlflow.note.content": _note(runs),
    }


def in_reading_order(stages: Sequence[str]) -> list[str]:
    """Stages by name, `evaluate` last."""
    return sorted(stages, key=lambda name: (name == "evaluate", name))


def flat_params(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Params with dotted names; of the rounds, their number."""
    return flat(
        {
            name: len(section) if name == "rounds" and isinstance(section, Mapping) else section
            for name, section in sections.items()
        }
    )


def markdown(text: object) -> str:
    """`text` as Markdown that says just that: no markup, no HTML, no end of a table's cell."""
    line = " ".join(str(text).split())
    return "".join(
        f"&#{ord(letter)};" if letter in "\\`*_{}[]()<>#|!~&$\"'" else letter for letter in line
    )


def _note(runs: Mapping[str, "Run"]) -> str:
    """The description that MLflow's page shows: a link to each stage's run."""
    rows = (
        f"| {_cell(stage)} |"
        f" [{_cell(run.info.run_name)}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}) |"
        for stage, run in runs.items()
    )
    return "\n".join(("| stage | run |", "|---|---|", *rows))


def _cell(text: object) -> str:
    return (
        str(text)
        if str(text).replace("@", "").replace("-", "").replace(".", "").isalnum()
        else markdown(text)
    )
