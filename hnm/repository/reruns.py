"""Why stages run again though neither inputs nor params changed: the causes of their last runs, by
dvc.lock, compared with the present ones.
"""

import hashlib
from collections import defaultdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hnm.causes import Causes, causes_of, differences, in_words
from hnm.errors import TrackingError
from hnm.files import json_text
from hnm.repository.outputs import Outputs
from hnm.repository.revision import bytes_of
from hnm.repository.stages import StageState, current_stages, locked_stages

UNKNOWN = "causes of another place, which are in no cache here (dvc pull brings them)"


def reruns(folder: Path, device: str) -> list[str]:
    """What differs from the last runs of the stages, each line with the stages that run again for
    it; empty where nothing does.

    Args:
        folder: where dvc.lock lies.
        device: `compute.device`.

    Raises:
        TrackingError: dvc.lock is not what DVC writes.
    """
    states = locked_stages(folder)
    outputs = Outputs(folder)
    stages_of: dict[str, dict[str, None]] = defaultdict(dict)  # change -> stages, each once
    for state in (current_stages(states) or states).values():
        for change in _changes(state, device, outputs):
            stages_of[change][state.stage] = None
    changes_of: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for change, stages in stages_of.items():
        changes_of[tuple(stages)].append(change)
    return [
        f"{in_words(changes)}: {', '.join(stages)} run again"
        for stages, changes in changes_of.items()
    ]


def _changes(state: StageState, device: str, outputs: Outputs) -> list[str]:
    """How the causes of a stage differ from those of its last run."""
    if state.causes is None or not state.module.startswith("pipelines."):
        return []
    causes = causes_of(state.module, device)
    md5 = state.deps[state.causes]
    if hashlib.md5(json_text(causes).encode(), usedforsecurity=False).hexdigest() == md5:
        return []
    try:
        before = TypeAdapter(Causes).validate_json(bytes_of(outputs, state.causes, md5))
    except (TrackingError, ValidationError):
        return [UNKNOWN]
    return differences(before, causes)
