"""The stages of the rounds, run one after the other in this process on a copy of a tiny project."""

import shutil
from pathlib import Path

from hnm.loop.paths import Paths
from hnm.params import Params
from hnm.tables import PATIENTS, SLIDES
from hnm.tracking.runs import Tracker
from pipelines import embed, finetune, head, mine


def run_stages(project: Path, copy: Path, params: Params) -> Paths:
    """The paths of `copy`, in which the stages of all rounds have run as in `project`."""
    for name in ("data", "vetoes", "extra"):
        shutil.copytree(project / name, copy / name)
    paths = Paths(copy)
    slides = SLIDES.read(paths.cohort.slides)
    PATIENTS.write(slides[["slide_id", "patient_id"]], paths.cohort.patients)
    for number in range(len(params.rounds)):
        if number:
            tracker = Tracker("mine", None)
            mine.main(paths.mine(number), number, mining=params.mining, tracker=tracker)
            finetune.main(
                paths.finetune(number),
                number,
                finetune=params.finetune,
                mining=params.mining,
                compute=params.compute,
                tracker=Tracker("finetune", None),
            )
        embed.main(paths.embed(number), embed=params.embed, compute=params.compute)
        head.main(
            paths.head(number),
            number,
            head=params.head,
            ranking=params.ranking,
            compute=params.compute,
            tracker=Tracker("head", None),
        )
    return paths
