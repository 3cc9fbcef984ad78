"""One of two processes that train together, as torchrun starts them: `python -m
tests.support.processes FOLDER` writes what it saw to FOLDER/<rank>.pt.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

from hnm import params
from hnm.learning.compute import CPU, Machine, joined
from hnm.learning.encoder import make_encoder
from hnm.learning.training.fit_encoder import fit_encoder, role_losses
from hnm.learning.training.fit_simclr import fit_simclr
from hnm.learning.training.trainer import differentiate, shares_of

ROLES = np.array([0, 1, 1, 0, 1, 0, 0, 1])
TILES = (
    np.random.default_rng(0).integers(0, 120, (8, 32, 32, 3)) + 100 * ROLES[:, None, None, None]
).astype(np.uint8)
FINETUNE = params.Finetune(epochs=1, batch_tiles=4, projection_features=8, freeze_layers=0)
SIMCLR = params.Simclr(epochs=1, batch_tiles=4, projection_features=8)


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    encoder = make_encoder(params.Encoder(name="test_resnet", weights="random"))
    return torch.nn.Sequential(encoder, torch.nn.Linear(encoder.record.features, 6)).eval()


def step(machine: Machine) -> dict[str, torch.Tensor]:
    """Losses and gradients of one step with given views."""
    network = model()
    shares = shares_of(np.array([5, 0, 3, 1]), machine.ranks, "finetune")
    views = torch.rand(8, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    of_rank = views[shares[machine.rank]].transpose(0, 1).flatten(0, 1)

    def loss_of(projected: torch.Tensor, rows: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        negative, positive = role_losses(projected, torch.from_numpy(ROLES[rows]), temperature=0.07)
        return {"loss": 0.25 * negative + 0.75 * positive, "positive_loss": positive}

    parts = differentiate(network, of_rank, shares, loss_of, 1, machine)
    return {
        **parts,
        **{
            name: weight.grad
            for name, weight in network.named_parameters()
            if weight.grad is not None
        },
    }


def trained(machine: Machine) -> dict[str, torch.Tensor]:
    """The encoder's state after fine-tuning, and after SimCLR."""
    states: dict[str, torch.Tensor] = {}
    for name in ("finetune", "simclr"):
        encoder = make_encoder(params.Encoder(name="test_resnet", weights="random"))
        if name == "finetune":
            fit_encoder(
                encoder, TILES.__getitem__, ROLES, FINETUNE, machine, lambda epoch, metrics: None
            )
        else:
            fit_simclr(
                encoder, TILES.__getitem__, len(TILES), SIMCLR, machine, lambda epoch, metrics: None
            )
        states |= {f"{name} {key}": value for key, value in encoder.backbone.state_dict().items()}
    return states


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(CPU, int(os.environ["WORLD_SIZE"])) as machine:
        torch.save(
            {"step": step(machine), "trained": trained(machine)},
            Path(sys.argv[1]) / f"{machine.rank}.pt",
        )
