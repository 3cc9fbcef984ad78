"""The runs of a study in MLflow: one for it, a child a trial, a grandchild a round."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnm.repository.stages import git_tags
from hnm.tracking.record import Record
from hnm.tracking.runs import Tracker, live_run, tracking_is_on
from hnm.tracking.summary import flat_params

Step = tuple[int | None, Mapping[str, float | None]]
"""The number of a round, None for the whole trial, and its metrics."""


@dataclass(frozen=True)
class StudyTracker:
    """The runs of one study. The study's run is found again when it goes on.

    It can be sent to a worker process. Where `root` is None, or HNM_TRACKING=off, nothing is
    logged.
    """

    root: Path | None
    experiment: str = ""
    study: str = ""
    key: str = ""
    """Digest that no other study has, not even a later one of the same name."""

    @contextlib.contextmanager
    def running(
        self, sections: Mapping[str, Any], summary: Callable[[], Mapping[str, float]], plots: Path
    ) -> Iterator[None]:
        """The study's run, open as long as the block runs; a courier brings the trials meanwhile.

        Args:
            sections: the sections of params.yaml that all trials share but for the study's space.
            summary: metrics of the study, asked for at its end.
            plots: folder of pictures, kept with the run where it is there at the end.
        """
        if self.root is None or not tracking_is_on():
            yield
            return
        tags = {"hnm.kind": "study", **git_tags(self.root)}
        start = self._start((), tags, flat_params(sections))
        with live_run(self.root, start, time.monotonic()) as record:
            try:
                yield
            finally:
                tracker = Tracker("study", record)
                tracker.metrics(summary())
                if plots.is_dir():
                    tracker.file(plots)

    def trial(
        self,
        number: int,
        state: str,
        values: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        rounds: Sequence[Mapping[str, float]],
    ) -> None:
        """Logs a finished trial: its params, its metrics, and the metrics of each of its rounds."""
        trial = f"trial-{number}"
        tags = {"hnm.kind": "trial", "hnm.trial_state": state}
        steps: list[Step] = [(None, metrics)]
        for round_, round_metrics in enumerate(rounds):
            of_trial = {
                "round/validation_auc": round_metrics["validation/auc"],
                "round/validation_log_loss": round_metrics["validation/loss"],
            }
            steps.append((round_, of_trial))
        self._run(self._start((trial,), tags, values), steps)
        for round_, round_metrics in enumerate(rounds):
            tags = {"hnm.kind": "round", "hnm.round": str(round_)}
            start = self._start((trial, f"r{round_}"), tags, values)
            self._run(start, [(None, round_metrics)])

    def _run(self, start: Mapping[str, Any], steps: Sequence[Step]) -> None:
        """Writes the record of a run that is over."""
        if self.root is None or not tracking_is_on():
            return
        has_failed = start["tags"].get("hnm.trial_state") == "failed"
        with Record.written(self.root, start, "FAILED" if has_failed else "FINISHED") as record:
            for step, metrics in steps:
                Tracker("study", record).metrics(metrics, step)

    def _start(
        self, path: tuple[str, ...], tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Content of the event `start`; `path` names the run below the study's own, as
        ("trial-3", "r0").
        """
        return {
            "experiment": self.experiment,
            "name": "-".join(path) or f"study-{self.study}",
            "tags": {**tags, "hnm.study": self.study, "hnm.study_key": self.key},
            "params": dict(params),
            "inputs": [],
            "identity": self._identity(path),
            "parent": self._identity(path[:-1]) if path else None,
        }

    def _identity(self, path: tuple[str, ...]) -> str:
        """The run's tag `hnm.record`, the same in each record that speaks of it."""
        return "-".join(("study", self.study, self.key[:16], *path))
