"""A loop whose AUC is a formula of the params, so that a study of it takes no time; worker
processes can be sent it.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hnm.loop.rounds import Fold, Loop, RoundResult, Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.studies.files import StudyFiles
from hnm.studies.study import StudySettings, run_study
from tests.support.study import tiny_params


@dataclass
class FormulaLoop(Loop):
    """`stop` raises in the trial that it names; `log`, a file, gets a line a trial, whichever
    process runs it.
    """

    stop: tuple[int, BaseException] | None = None
    log: Path | None = None
    kill_at: int | None = None
    """The line of `log` whose writer kills its process."""
    seconds: float = 0.0
    """What a trial takes."""
    seen: list[Params] = field(default_factory=list)
    folds: list[Fold | None] = field(default_factory=list)

    def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
        self.seen.append(params)
        self.folds.append(fold)
        if self.log:
            with self.log.open("a") as stream:
                stream.write(f"{params.ranking.margin!r}\n")
            if self.kill_at == len(self.log.read_text().splitlines()):
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        for number in range(2):
            if self.stop and len(self.seen) == self.stop[0] and number == 0:
                raise self.stop[1]
            auc = 0.5 + 0.25 * number - (params.ranking.margin - 0.75) ** 2 / 4
            yield RoundResult(
                number,
                auc,
                0.5 + params.head.seed,
                Path(),
                Path(),
                Path(),
                0.0,
                round(1000 * params.mining.negative_fraction) * number,
            )


def run_machine(
    folder: Path, data: Path, url: str, trials: int, loop: FormulaLoop, lines: Path
) -> None:
    """What one machine of several does: `hnm tune` with a storage that they share."""

    def say(line: str) -> None:
        with lines.open("a") as stream:
            stream.write(f"{line}\n")

    settings = StudySettings(
        StudyFiles(folder),
        tiny_params(),
        Upstream(data.parent),
        loop,
        Store(folder / "store"),
        trials,
        storage=url,
    )
    run_study(settings, say)
