"""The command line of a stage, from the signature of its `main`.

`main(files: MineFiles, round: int, *, mining: Mining)` is run by
`python -m pipelines.mine --tile-scores … --mined … --round …`. The fields of the dataclass `files`
are flags, and their docstrings are the help. Keyword-only arguments are sections of params.yaml,
which is checked whole before anything else; a dataclass among them stands for its fields too. A
keyword-only `tracker: Tracker` is the run of this execution.

Every stage but `causes` also has the flag `--causes`, for the file of its causes. To DVC it is a
dependency, and it is held against what is here when the stage starts.
"""

import argparse
import ast
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hnm.causes import causes_of, differences, in_words
from hnm.errors import CausesError, HnmError
from hnm.files import read_json
from hnm.output import forgive_output, say
from hnm.params import load_params
from hnm.processes import STAGE_GOES_ON, die_with_parent, ending_in_a_line, keep_freed_memory
from hnm.project import project_home, project_root
from hnm.repository.stages import of_round, running_round, running_stage


def flags_of(main: Callable[..., None]) -> dict[str, type]:
    """Returns the flags of a stage, in order: name -> Path or int."""
    parameters = inspect.signature(main).parameters.values()
    positional = [part for part in parameters if part.kind is not part.KEYWORD_ONLY]
    return {name: kind for part in positional for name, kind in _parts(part).items()}


def sections_of(main: Callable[..., None]) -> list[str]:
    """Returns the sections of params.yaml that a stage takes, in order."""
    parameters = inspect.signature(main).parameters.values()
    named = [part for part in parameters if part.kind is part.KEYWORD_ONLY]
    return [name for part in named for name in _parts(part) if name != "tracker"]


def help_of(main: Callable[..., None]) -> dict[str, str]:
    """Returns what the flags of a stage mean, by name: the docstrings of the fields."""
    helps = {"round": "The number of the round."}
    for parameter in inspect.signature(main).parameters.values():
        if is_dataclass(parameter.annotation):
            helps |= _field_docstrings(parameter.annotation)
    return helps


def _field_docstrings(kind: Any) -> dict[str, str]:
    """Returns the docstring below each field of a class."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    docstrings = {}
    for statement, following in pairwise(getattr(tree, "body", [])):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docstrings[name] = " ".join(text.split())
    return docstrings


def _parts(parameter: inspect.Parameter) -> dict[str, Any]:
    """Returns what a parameter stands for, name -> kind: the fields of its dataclass, or itself."""
    kind = parameter.annotation
    if is_dataclass(kind):
        return {field.name: field.type for field in fields(kind)}
    return {parameter.name: kind}


def _call(main: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Calls `main` with the values of its flags and sections, those of a dataclass put together."""
    arguments = {}
    for name, parameter in inspect.signature(main).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            arguments[name] = kind(**{part: values[part] for part in _parts(parameter)})
        else:
            arguments[name] = values[name]
    main(**arguments)


def run(main: Callable[..., None], *, tracked: bool = True) -> None:
    """Runs the stage `main` with the process's arguments and the params.yaml of the working
    directory, and as a run in MLflow.

    A stage that is not `tracked` has no run, no cost and no causes.
    """
    die_with_parent()
    keep_freed_memory()
    forgive_output(everything=True)
    with ending_in_a_line(STAGE_GOES_ON):
        arguments = _arguments(main, tracked)
        params = load_params(Path("params.yaml"))
        sections = {name: getattr(params, name) for name in sections_of(main)}
        flags = {name: arguments[name] for name in flags_of(main)}
        if not tracked:
            _call(main, {**flags, **sections})
            return
        from hnm.tracking.runs import track_stage  # `causes` always runs, and goes without

        stage = _name_of(main)
        if _is_first() and "causes" in arguments:
            hold(arguments["causes"], f"pipelines.{stage}", params.compute.device)
        with track_stage(stage, arguments, sections, params) as tracker:
            _call(main, {**flags, **sections, "tracker": tracker})
        if _is_first():
            _enter_cost(stage, arguments, sections)


def _arguments(main: Callable[..., None], tracked: bool) -> dict[str, Any]:
    """Returns the values of the flags in this process's command, those of its round filled in."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    helps = help_of(main) if {"-h", "--help"} & set(sys.argv) else {}
    for name, kind in flags_of(main).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=kind, required=True, help=helps.get(name))
    if tracked:
        parser.add_argument(
            "--causes",
            type=Path,
            default=argparse.SUPPRESS,
            help="The file of the stage's causes, which the stage `causes` wrote.",
        )
    round_ = running_round()
    return vars(parser.parse_args([of_round(word, round_) for word in sys.argv[1:]]))


def hold(causes: Path, module: str, device: str) -> None:
    """Compares the file that the stage `causes` wrote of `module` with what is here now. Outside of
    DVC there may be no such file.

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
    """Returns whether this is the first process of a training, which speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _enter_cost(stage: str, arguments: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """Enters what the stage took. Its outputs are complete, so that an error is only printed."""
    from hnm.repository.costs import cost_so_far, dvc_name, write_cost
    from hnm.tracking.record import first_line

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
    """Returns the stage's name without its round, which is that of its file."""
    name = main.__module__.rpartition(".")[2]
    return Path(inspect.getfile(main)).stem if name == "__main__" else name
