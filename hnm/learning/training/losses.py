"""The losses of the method: patch ranking for the head, supervised contrast for the encoder."""

import torch
from torch import Tensor


def ranking_loss(positive: Tensor, negative: Tensor, *, margin: float, top_k: int) -> Tensor:
    """Patch ranking loss: the surest tiles of a positive slide must beat those of a negative one by
    a margin.

    `max(0, margin - mean(top K of positive) + mean(top K of negative))` (Huang et al., MICCAI
    2024).

    Args:
        positive: `(tiles,)` scores or logits of a positive slide.
        negative: `(tiles,)` the same of a negative slide.
        margin: in the unit of the tiles' values.
        top_k: K; a slide with fewer tiles uses those it has.
    """
    return torch.relu(margin - _top_mean(positive, top_k) + _top_mean(negative, top_k))


def _top_mean(values: Tensor, k: int) -> Tensor:
    return values.topk(min(k, len(values))).values.mean()


def supervised_contrastive_loss(
    features: Tensor, roles: Tensor, anchors: Tensor, *, temperature: float
) -> Tensor:
    """Supervised contrastive loss, the sum over positives outside the logarithm (Khosla et al.
    2020, equation 2).

    For anchor i with positives P(i), the other rows of its role, and contrast A(i), all other rows:
    `-1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a in A(i)} exp(z_i z_a / t))`, meant over
    the anchors that have a positive; 0 where none has. Computed by log-sum-exp, of half-precision
    input in float32.

    Args:
        features: `(rows, features)` projections; normalised here. The views of one tile are rows of
        their own. roles: `(rows,)` the role of each row.
        anchors: `(rows,)` bool, which rows are anchors; every row is contrast.
        temperature: t.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = unit_rows(features)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
        log_share = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(itself, 0)
        positives = (roles[:, None] == roles[None, :]) & ~itself
        counts = positives.sum(dim=1)
        counted = anchors & (counts > 0)
        losses = -(log_share * positives).sum(dim=1)[counted] / counts[counted]
        return losses.sum() / max(len(losses), 1)


def nt_xent_loss(features: Tensor, tiles: Tensor, *, temperature: float) -> Tensor:
    """SimCLR's normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1), the mean
    over all views.

    `-log(exp(z_i z_j / t) / sum_{k != i} exp(z_i z_k / t))` for view i and the other view j of its
    tile: supervised contrast in which every tile is a role of its own and every view an anchor.

    Args:
        features: `(views, features)` projections; normalised here.
        tiles: `(views,)` the tile of each view; each comes twice.
        temperature: t.
    """
    return supervised_contrastive_loss(
        features, tiles, torch.ones_like(tiles, dtype=torch.bool), temperature=temperature
    )


def spread(features: Tensor) -> Tensor:
    """How far rows point apart: the mean over pairs of rows of one less their cosine; 0 where all
    point to one place, 1 where they are at right angles.

    Args:
        features: `(rows, features)`, two rows at least.
    """
    unit = unit_rows(features)
    rows = len(unit)
    return 1 - (unit.sum(dim=0).square().sum() - rows) / (rows * (rows - 1))


def unit_rows(features: Tensor) -> Tensor:
    """`features`, each row of length 1, in float32 at least."""
    return torch.nn.functional.normalize(
        features.to(torch.promote_types(features.dtype, torch.float32)), dim=1
    )
