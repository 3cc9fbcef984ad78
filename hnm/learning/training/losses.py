"""The losses of the method: patch ranking trains the head, contrast trains the encoder."""

import torch
from torch import Tensor


def ranking_loss(positive: Tensor, negative: Tensor, *, margin: float, top_k: int) -> Tensor:
    """Returns the patch ranking loss `()`: the highest tiles of a positive slide are to be higher
    than those of a negative slide by a margin (Huang et al., MICCAI 2024).

    It is `max(0, margin - mean(top K of positive) + mean(top K of negative))`.

    Args:
        positive: `(tiles,)`: scores or logits of the tiles of a positive slide.
        negative: `(tiles,)`: the same of a negative slide.
        margin: the margin, in the unit of `positive` and `negative`.
        top_k: K. All tiles of a slide are used where it has fewer.
    """
    return torch.relu(margin - _top_mean(positive, top_k) + _top_mean(negative, top_k))


def _top_mean(values: Tensor, k: int) -> Tensor:
    """Returns the mean of the `k` highest values, or of all where there are fewer."""
    return values.topk(min(k, len(values))).values.mean()


def supervised_contrastive_loss(
    features: Tensor, roles: Tensor, anchors: Tensor, *, temperature: float
) -> Tensor:
    """Returns the supervised contrastive loss `()` with the sum over positives outside the
    logarithm (Khosla et al. 2020, equation 2).

    With z_i row i at unit length, P(i) the other rows of its role and A(i) all other rows, the loss
    of anchor i is

        -1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a in A(i)} exp(z_i z_a / t)).

    Returned is the mean over the anchors that have a P(i), or 0 where none has. It is computed in
    float32 at least, by log-sum-exp.

    Args:
        features: `(rows, features)`: projected views, each view a row. They are normalised here.
        roles: `(rows,)`: the role of each row.
        anchors: `(rows,)` bool: the rows that are anchors. Every row is contrast.
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
    """Returns SimCLR's normalised temperature-scaled cross-entropy `()` (Chen et al. 2020, equation
    1).

    It is the mean over all views i of `-log(exp(z_i z_j / t) / sum_{k != i} exp(z_i z_k / t))`,
    where z_i is view i at unit length and j the other view of its tile. This is the supervised
    contrastive loss in which each tile is a role and each view an anchor.

    Args:
        features: `(views, features)`: projected views. They are normalised here.
        tiles: `(views,)`: the tile of each view. Each tile has two views.
        temperature: t.
    """
    return supervised_contrastive_loss(
        features, tiles, torch.ones_like(tiles, dtype=torch.bool), temperature=temperature
    )


def spread(features: Tensor) -> Tensor:
    """Returns how far rows point apart `()`: the mean over pairs of rows of one less their cosine.
    It is 0 where all rows point in one direction, and 1 where they are at right angles.

    Args:
        features: `(rows, features)`: two rows at least.
    """
    unit = unit_rows(features)
    rows = len(unit)
    return 1 - (unit.sum(dim=0).square().sum() - rows) / (rows * (rows - 1))


def unit_rows(features: Tensor) -> Tensor:
    """Returns the rows of `features` at unit length, in float32 at least."""
    return torch.nn.functional.normalize(
        features.to(torch.promote_types(features.dtype, torch.float32)), dim=1
    )
