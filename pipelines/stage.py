"""A stage's command line from its signature: positional arguments are flags, keyword-only ones are
params sections.

`main(scores: Path, slides: Path, mined: Path, *, mining: Mining)` is run by
`python -m pipelines.mine --scores … --slides … --mined …`; `mining` comes from params.yaml, checked
whole before anything else. A keyword-only `tracker: Tracker` is given the run of this execution.

Every stage but `causes` has the flag `--causes` too, for the file of its causes: a dependency for
DVC, and held against what is here when the stage starts.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hnm.causes import causes_of, differences, in_words
from hnm.errors import CausesError, HnmError
from hnm.files import read_json
from hnm.output import forgive_output, say
from hnm.params import load_params
from hnm.processes import STAGE_GOES_ON, die_with_parent, ending_in_a_line, keep_freed_memory
from hnm.project import project_home, project_root
from hnm.repository.costs import cost_so_far, dvc_name, write_cost
from hnm.repository.stages import of_round, running_round, running_stage
from hnm.tracking.record import first_line
from hnm.tracking.runs import track_stage


def flags_of(main: Callable[..., None]) -> dict[str, type]:
    """Flags of a stage, in order: name -> Path or int."""
    return {
        name: p.annotation
        for name, p in inspect.signature(main).parameters.items()
        if p.kind is not p.KEYWORD_ONLY
    }


def sections_of(main: Callable[..., None]) -> list[str]:
    """Sections of params.yaml that a stage takes."""
    return [
        name
        for name, p in inspect.signature(main).parameters.items()
        if p.kind is p.KEYWORD_ONLY and name != "tracker"
    ]


def takes_tracker(main: Callable[..., None]) -> bool:
    """Whether a stage logs more than its cost."""
    return "tracker" in inspect.signature(main).parameters


def run(main: Callable[..., None], *, tracked: bool = True) -> None:
    """Runs the stage `main` with the process's arguments and the params.yaml of the working
    directory, and as a run in MLflow.

    One that is not `tracked` has no run, no cost and no causes.
    """
    die_with_parent()
    keep_freed_memory()
    forgive_output(everything=True)
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    for name, kind in flags_of(main).items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, required=True)
    if tracked:
        parser.add_argument("--causes", type=Path, default=argparse.SUPPRESS)
    with ending_in_a_line(STAGE_GOES_ON):
        round_ = running_round()
        arguments = vars(parser.parse_args([of_round(word, round_) for word in sys.argv[1:]]))
        params = load_params(Path("params.yaml"))
        sections = {name: getattr(params, name) for name in sections_of(main)}
        if not tracked:
            main(**arguments, **sections)
            return
        stage = _name_of(main)
        if _is_first() and "causes" in arguments:
            hold(arguments["causes"], f"pipelines.{stage}", params.compute.device)
        given = {name: value for name, value in arguments.items() if name != "causes"}
        with track_stage(stage, arguments, sections, params) as tracker:
            main(**given, **sections, **({"tracker": tracker} if takes_tracker(main) else {}))
        if _is_first():
            _enter_cost(stage, arguments, sections)


def hold(causes: Path, module: str, device: str) -> None:
    """Holds the file that the stage `causes` wrote of `module` against what is here now; outside of
    DVC there may be none.

    Raises:
        CausesError: they differ. DVC would enter a result of these causes as one of those.
    """
    if not causes.exists():
        return
    if changed := differences(read_json(causes, CausesError), causes_of(module, device)):
        raise CausesError(
            f"{causes} does not say what is here now ({in_words(changed)}), and DVC would enter the"
            " result under the wrong causes; run dvc repro causes, which writes it anew, and then"
            " this command again"
        )


def _is_first() -> bool:
    """Of several processes of one training the first speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _enter_cost(stage: str, arguments: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """Enters what the stage took; its outputs are complete, so that what cannot be entered is only
    told.
    """
    name = dvc_name(stage, arguments)
    try:
        state = running_stage(project_root(), name, f"pipelines.{stage}", arguments, sections)
        write_cost(project_home(), name, state.key, cost_so_far())
    except (OSError, HnmError) as error:
        say(
            f"cost: what {name} took cannot be written ({first_line(error)}); the stage is complete"
            " without it"
        )


def _name_of(main: Callable[..., None]) -> str:
    """The stage's name without its round: that of its file."""
    name = main.__module__.rpartition(".")[2]
    return Path(inspect.getfile(main)).stem if name == "__main__" else name
