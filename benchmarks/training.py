"""What reading, decoding and drawing views add to the encoder's own time, in fine-tuning and in
embedding.

    python benchmarks/training.py --precision bfloat16

Packs of JPEG tiles are written to a temporary folder. Fine-tuning and embedding run over them as
the stages do, fine-tuning on tiles from all packs; between their epochs, or runs, the bare network
does the same work on tiles that lie ready in memory. Medians are compared: on a CPU of the
process's CPU seconds over all threads, which other processes do not stretch and to which background
reading counts in full; on a GPU of wall-clock seconds. Aim: the bare network takes at least 0.9 of
the whole.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from hnm import params
from hnm.learning.compute import Machine, set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import TileEncoder, make_encoder, to_input
from hnm.learning.training.fit_encoder import NEGATIVE, POSITIVE, fit_encoder, role_losses
from hnm.learning.training.trainer import differentiate
from hnm.loop.packs import Packs
from hnm.processes import keep_freed_memory
from hnm.slides.cutting.pack import PackTile, encode, write_pack

PACKS = 100
"""Most packs that the tiles lie in."""


def main(
    encoder: str = "tf_efficientnet_lite0",
    tile_px: int = 96,
    batch_tiles: int = 32,
    steps: Annotated[int, typer.Option(help="Steps of an epoch.")] = 4,
    epochs: int = 6,
    precision: str = "auto",
    device: str = "cpu",
    threads: int = 2,
) -> None:
    """Prints the seconds of a tile and of a step, as the stages have them and of the bare network,
    and their ratio.
    """
    keep_freed_memory()  # as stages do
    machine = set_up_torch(
        params.Compute.model_validate(
            {"precision": precision, "device": device, "threads": threads}
        )
    )
    weights = "package" if encoder == params.Encoder().name else "random"
    network = make_encoder(params.Encoder(name=encoder, weights=weights))
    count = batch_tiles * steps
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(
            0, 256, (count, tile_px // 8, tile_px // 8, 3), dtype=np.uint8
        )
        pixels = noise.repeat(8, axis=1).repeat(8, axis=2)
        counts = write_packs(pixels, tile_px, Path(folder))
        supply = Packs(Path(folder))
        whole, bare = embedding(
            network, supply, counts, torch.from_numpy(pixels), machine, batch_tiles, epochs
        )
        print(
            f"embed {encoder} {machine.precision}: {1e3 * whole / count:.2f} ms a tile, bare"
            f" forward {1e3 * bare / count:.2f} ms, ratio {bare / whole:.2f}"
        )
        section = params.Finetune(epochs=epochs, batch_tiles=batch_tiles, freeze_layers=0)
        whole, bare = finetuning(
            network,
            supply,
            counts,
            torch.from_numpy(pixels[: 2 * batch_tiles]),
            section,
            machine,
            steps,
        )
        print(
            f"finetune {encoder} {machine.precision}: {whole:.3f} s a step of {2 * batch_tiles}"
            f" views, bare {bare:.3f} s, ratio {bare / whole:.2f}"
        )


def write_packs(pixels: np.ndarray, tile_px: int, folder: Path) -> list[int]:
    """Writes the tiles into packs; returns the number of tiles of each."""
    shares = np.array_split(pixels, min(PACKS, len(pixels)))
    for slide, share in enumerate(shares):
        write_pack(
            folder / f"{slide}.h5",
            [PackTile(0, 0, 1.0, encode(tile, 90)) for tile in share],
            slide_id=str(slide),
            mpp=1.0,
            tile_px=8 * (tile_px // 8),
            side=tile_px,
            planned=len(share),
        )
    return [len(share) for share in shares]


def seconds(machine: Machine) -> float:
    """The clock, once the GPU has done what it was given."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def embedding(
    network: TileEncoder,
    supply: Packs,
    counts: list[int],
    pixels: torch.Tensor,
    machine: Machine,
    batch: int,
    runs: int,
) -> tuple[float, float]:
    """Median seconds of embedding all tiles, and of the bare forward passes."""
    whole, bare = [], []
    for _ in range(runs + 1):
        began = seconds(machine)
        list(
            embed_tiles(
                network,
                counts,
                lambda slide, first, end: supply.pack(str(slide)).tiles(range(first, end)),
                batch_tiles=batch,
                machine=machine,
            )
        )
        whole.append(seconds(machine) - began)
        ready = to_input(pixels, machine.device).contiguous(memory_format=torch.channels_last)
        began = seconds(machine)
        with torch.inference_mode(), machine.autocast():
            for first in range(0, len(ready), batch):
                network(ready[first : first + batch]).float().cpu()
        bare.append(seconds(machine) - began)
    return median(whole[1:]), median(bare[1:])


def finetuning(
    network: TileEncoder,
    supply: Packs,
    counts: list[int],
    views: torch.Tensor,
    section: params.Finetune,
    machine: Machine,
    steps: int,
) -> tuple[float, float]:
    """Median seconds of a step of fine-tuning, and of its forward pass, loss, backward pass and
    update on views that lie ready.
    """
    roles = np.array([NEGATIVE, POSITIVE] * (len(views) // 4 * steps))
    ready = to_input(views, machine.device).contiguous(memory_format=torch.channels_last)
    width = network.record.features
    model = nn.Sequential(
        network, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, section.projection_features)
    ).to(machine.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)
    share = np.arange(len(views) // 2)
    whole, bare = [], []
    began = 0.0

    def after_epoch(epoch: int, metrics: object) -> None:
        nonlocal began
        whole.append((seconds(machine) - began) / steps)
        for _ in range(steps):
            began = seconds(machine)
            optimiser.zero_grad(set_to_none=True)
            differentiate(
                model,
                ready,
                [share],
                lambda projected, rows, epoch: {"loss": contrast(projected, roles[rows], section)},
                epoch,
                machine,
            )
            optimiser.step()
            bare.append(seconds(machine) - began)
        began = seconds(machine)

    slide_ids = np.repeat(np.arange(len(counts)).astype(str), counts)
    tiles = np.concatenate([np.arange(count) for count in counts])

    def read(rows: np.ndarray) -> np.ndarray:
        return supply.tiles(slide_ids[rows % len(tiles)], tiles[rows % len(tiles)])

    fit_encoder(network, read, roles, section, machine, after_epoch)
    return median(whole[1:]), median(bare[steps:])


def contrast(projected: torch.Tensor, roles: np.ndarray, section: params.Finetune) -> torch.Tensor:
    return role_losses(
        projected, torch.from_numpy(roles).to(projected.device), temperature=section.temperature
    ).mean()


if __name__ == "__main__":
    typer.run(main)
