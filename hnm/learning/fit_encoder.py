"""Fine-tuning the encoder on mined tiles by supervised contrast."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnm import params
from hnm.draws import seed_of
from hnm.errors import FinetuneError
from hnm.learning.compute import Machine
from hnm.learning.encoder import TileEncoder, import_timm, to_input
from hnm.learning.history import OnEpoch
from hnm.learning.losses import spread, supervised_contrastive_loss
from hnm.learning.views import random_views

NEGATIVE, POSITIVE = 0, 1


def fit_encoder(
    encoder: TileEncoder, tiles: NDArray[np.uint8], roles: NDArray[np.int64], section: params.Finetune, machine: Machine, on_epoch: OnEpoch
) -> list[dict[str, float]]:
    """Fine-tunes `encoder` in place and returns the history: one mapping an epoch.

    A step takes tiles of both roles, half and half, and two views of each. In the warm-up negatives are anchors, with
    the other negatives as their positives; then those that `section.anchors` names. Tiles of no certain label never
    come here: mining leaves them out. Batch normalisation keeps its statistics, as the mined tiles are no fair sample of
    the cohort. The loss sees a projection that is dropped afterwards (Khosla et al. 2020, section 3.1); it starts from
    features standardised as the encoder gave them at first, for all tiles share so much of a feature that raw ones
    look alike at a low temperature, and the contrast may then collapse.

    Args:
        encoder: the encoder of the round before.
        tiles: `(tiles, height, width, 3)` RGB of the mined tiles.
        roles: `(tiles,)` `POSITIVE` or `NEGATIVE` (a hard negative).
        section: the settings.
        machine: where, and in which precision, to train; the loss is always computed in float32.
        on_epoch: told of each epoch.

    Raises:
        FinetuneError: a role has no tile, no layer is left to train, or the loss is no longer finite.
    """
    for role, name in ((NEGATIVE, "hard negatives"), (POSITIVE, "positives")):
        if not (roles == role).any():
            raise FinetuneError(f"the mined set has no {name}; the contrast needs both roles: see mining.threshold and the fractions")
    device = machine.device
    encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_layers(encoder, section.freeze_layers)
    projection = _make_projection(_features(encoder, tiles, section.batch_tiles, machine), section).to(device)
    model = nn.Sequential(encoder, projection)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=section.learning_rate, weight_decay=section.weight_decay)
    history: list[dict[str, float]] = []
    for epoch in range(1, section.epochs + 1):
        model.train()
        _freeze_batch_norm(model)
        weights = anchor_weights(section, epoch)
        sums = torch.zeros(3)
        steps = list(role_batches(roles, section.batch_tiles, section.seed, epoch))
        for step, rows in enumerate(steps):
            pixels = to_input(torch.from_numpy(tiles[rows]), device)
            views = [random_views(pixels, section.views, seed_of(section.seed, "views", epoch, step, view)) for view in range(2)]
            with machine.autocast():
                projected = model(torch.cat(views).contiguous(memory_format=torch.channels_last))
            step_roles = torch.from_numpy(roles[rows]).to(device).repeat(2)
            losses = role_losses(projected, step_roles, temperature=section.temperature)
            loss = losses @ weights.to(device)
            if not torch.isfinite(loss):
                raise FinetuneError(f"the contrastive loss is {loss.item()} in epoch {epoch}; lower finetune.learning_rate={section.learning_rate}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            sums += torch.stack([*losses.detach(), spread(projected.detach())]).cpu()
        means = sums / len(steps)
        parts = dict(zip(("negative_loss", "positive_loss", "spread"), means.tolist(), strict=True))
        row = {"epoch": epoch, "loss": (means[:2] @ weights).item(), **parts, "learning_rate": section.learning_rate}
        history.append(row)
        on_epoch(epoch, row)
    encoder.to("cpu").eval()
    return history


def freeze_layers(encoder: TileEncoder, layers: int) -> None:
    """Keeps the weights of the first `layers` layers, as timm groups them (stem first), out of training.

    Raises:
        FinetuneError: the encoder has no more layers than that.
    """
    backbone: Any = encoder.backbone
    groups = import_timm().models.group_parameters(backbone, backbone.group_matcher(coarse=True))
    if layers >= len(groups):
        raise FinetuneError(f"finetune.freeze_layers={layers} leaves nothing to train: {encoder.record.name} has {len(groups)} layers; lower it")
    frozen = {name for layer in sorted(groups)[:layers] for name in groups[layer]}
    for name, weight in encoder.backbone.named_parameters():
        weight.requires_grad_(name not in frozen)


def anchor_weights(section: params.Finetune, epoch: int) -> Tensor:
    """Weights `(2,)` in the loss of the negatives and of the positives as anchors."""
    anchors = "negatives" if epoch <= section.warmup_epochs else section.anchors
    return {"negatives": torch.tensor([1.0, 0.0]), "positives": torch.tensor([0.0, 1.0]), "both": torch.tensor([0.5, 0.5])}[anchors]


def collapse_of(history: Sequence[Mapping[str, float]], section: params.Finetune) -> str | None:
    """What to say of a training that ended with all views at one point, or None.

    There every similarity is the same, so that the loss is ln(rows - 1) and has no gradient left. The loss sees
    similarities in units of the temperature: views lie at one point where their spread is below a tenth of it.
    """
    last = history[-1]
    if last["spread"] >= section.temperature / 10:
        return None
    rows = 4 * (section.batch_tiles // 2)
    return (
        f"fine-tuning has collapsed: all views of mined tiles lie at one point (spread {last['spread']:.2g}), where the contrastive loss is "
        f"ln(rows - 1) = {math.log(rows - 1):.3f} (it is {last['loss']:.3f}) and nothing more is learnt; the roles could not be told apart: "
        f"lower finetune.learning_rate={section.learning_rate:g}, raise finetune.temperature={section.temperature:g}, "
        "or mine surer tiles (a higher mining.threshold, smaller fractions, a head trained longer)"
    )


def role_losses(projected: Tensor, roles: Tensor, *, temperature: float) -> Tensor:
    """The contrastive loss with negatives, and with positives, as anchors: `(2,)`. The other role is contrast in each."""
    return torch.stack([supervised_contrastive_loss(projected, roles, roles == role, temperature=temperature) for role in (NEGATIVE, POSITIVE)])


def role_batches(roles: NDArray[np.int64], batch_tiles: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step: half of each role. Every tile of the more numerous role comes once, those of the other in whole orders again and again."""
    generator = np.random.default_rng(seed_of(seed, "finetune batches", epoch))
    half = batch_tiles // 2
    rows = [np.flatnonzero(roles == role) for role in (NEGATIVE, POSITIVE)]
    steps = -(-max(map(len, rows)) // half)
    orders = [np.concatenate([generator.permutation(own) for _ in range(-(-steps * half // len(own)))]) for own in rows]
    for step in range(steps):
        yield np.concatenate([order[step * half : (step + 1) * half] for order in orders])


class _Standardise(nn.Module):
    """Features less their first mean, over their first deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("deviation", features.std(dim=0, unbiased=False).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def _make_projection(features: Tensor, section: params.Finetune) -> nn.Sequential:
    """Two layers behind the standardisation of `features`; the weights are drawn from the section's seed."""
    width = features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "projection"))
        return nn.Sequential(_Standardise(features), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, section.projection_features))


@torch.no_grad()
def _features(encoder: TileEncoder, tiles: NDArray[np.uint8], batch_tiles: int, machine: Machine) -> Tensor:
    """The features of the mined tiles before fine-tuning, on the CPU."""
    batches = [to_input(torch.from_numpy(tiles[first : first + batch_tiles]), machine.device) for first in range(0, len(tiles), batch_tiles)]
    with machine.autocast():
        return torch.cat([encoder.eval()(batch.contiguous(memory_format=torch.channels_last)).float().cpu() for batch in batches])


def _freeze_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
