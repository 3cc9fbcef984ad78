"""The kinds of heads, and how a head is made, saved and loaded."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from hnm import params
from hnm.errors import REMAKE, HeadError
from hnm.files import whole, write_json
from hnm.learning.heads.abmil import ABMIL
from hnm.learning.heads.clam_sb import CLAMSB
from hnm.learning.heads.dsmil import DSMIL
from hnm.learning.heads.head import Head
from hnm.learning.heads.inherit import Inherit
from hnm.learning.heads.max import Max
from hnm.learning.heads.mean import Mean
from hnm.learning.heads.mined import Mined
from hnm.learning.heads.transmil import TransMIL
from hnm.learning.weights import (
    FILE,
    MOST_FEATURES,
    Parts,
    parse_record,
    read_parts,
    with_weights,
    write_tensors,
)
from hnm.seeds import seed_of

RECORD = "head.json"
CURE = f"; bring it anew from where it was made, or, of this project, {REMAKE}"

KINDS: dict[str, type[Head]] = {
    "dsmil": DSMIL,
    "abmil": ABMIL,
    "transmil": TransMIL,
    "clam_sb": CLAMSB,
    "mean": Mean,
    "max": Max,
    "inherit": Inherit,
    "mined": Mined,
}
"""`head.kind` -> its class."""


class HeadRecord(params.Section):
    """What must be known beside the weights to use a head."""

    features: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    """Width of a feature."""
    head: params.Head


def make_head(features: int, section: params.Head) -> Head:
    """Returns a new head of the kind `head.kind` for features of this width. Its weights are drawn
    from `head.seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head weights"))
        return KINDS[section.kind](features, section)


def save_head(head: Head, section: params.Head, folder: Path) -> None:
    """Writes the head as `head.json` and `weights.safetensors` into `folder`. Equal heads give
    equal bytes.
    """
    record = HeadRecord(features=len(head.mean), head=section)
    write_json(record.model_dump(mode="json"), folder / RECORD)
    with whole(folder / FILE) as temporary:
        write_tensors(head.state_dict(), temporary)


def load_head(folder: Path) -> Head:
    """Returns the head that `save_head`, or a stranger, wrote into `folder`. It is ready to
    predict. No pickle is read.

    Raises:
        HeadError: `folder` holds no head, or its record and its weights do not fit each other.
    """
    return head_of(read_parts(folder, RECORD, HeadError, CURE))


def head_of(parts: Parts) -> Head:
    """Returns the head of these files, as `load_head` does."""
    record = parse_record(
        HeadRecord,
        parts.record,
        HeadError,
        what=f"{parts.where}/{RECORD}",
        noun="head record",
        cure=CURE,
    )
    return with_weights(
        lambda: make_head(record.features, record.head), parts, HeadError, cure=CURE, misfit=CURE
    )
