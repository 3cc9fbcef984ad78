"""Stage `finetune`: the encoder of the round before, fine-tuned on the mined tiles."""

from hnm import params
from hnm.loop.finetune import finetune_encoder
from hnm.loop.launch import share_among_processes
from hnm.loop.paths import FinetuneFiles
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    files: FinetuneFiles,
    round: int,
    *,
    finetune: params.Finetune,
    mining: params.Mining,
    compute: params.Compute,
    tracker: Tracker,
) -> None:
    """Writes the round's encoder and its history. Where the policy is to mine nothing, it writes
    the encoder of the round before.
    """
    history, tiles = finetune_encoder(
        files, finetune=finetune, mining=mining, compute=compute, on_epoch=tracker.epoch
    )
    if not history:
        return
    tracker.model(files.folder, "encoder")
    print(
        f"round {round}: contrastive loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f} on"
        f" {tiles} mined tiles",
        flush=True,
    )


if __name__ == "__main__":
    share_among_processes("pipelines.finetune")
    stage.run(main)
