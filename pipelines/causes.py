"""Stage `causes`: what of this place can change the results of each other stage, beside its inputs
and params.

It always runs. A stage runs again only where its own file has other bytes than at its last run.
"""

from pathlib import Path

from hnm.causes import causes_of
from hnm.files import write_json
from hnm.output import say
from hnm.params import Compute
from hnm.repository.reruns import reruns
from pipelines import stage


def main(
    cohort: Path,
    tiles: Path,
    encoder: Path,
    embed: Path,
    head: Path,
    mine: Path,
    finetune: Path,
    evaluate: Path,
    *,
    compute: Compute,
) -> None:
    """Writes one file a stage: its code, its libraries' versions and, where torch computes, the
    machine; says what differs from the stages' last runs.
    """
    files = {
        "cohort": cohort,
        "tiles": tiles,
        "encoder": encoder,
        "embed": embed,
        "head": head,
        "mine": mine,
        "finetune": finetune,
        "evaluate": evaluate,
    }
    for name, path in files.items():
        write_json(causes_of(f"pipelines.{name}", compute.device), path)
    for line in reruns(Path.cwd(), compute.device):
        say(line)


if __name__ == "__main__":
    stage.run(main, tracked=False)
