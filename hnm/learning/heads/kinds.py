"""The kinds of heads, and how a head is made, kept and read."""

from pathlib import Path

import torch
from pydantic import ValidationError

from hnm import params
from hnm.errors import REMAKE, HeadError
from hnm.files import parse_json, whole, write_json
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
    fit,
    read_parts,
    tensors_of,
    write_tensors,
)
from hnm.seeds import seed_of

RECORD = "head.json"
MOST_CLASSES = 1000
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


def make_head(features: int, section: params.Head, classes: int = 2) -> Head:
    """A new head of kind `head.kind` for features of this width; its weights are drawn from
    `head.seed`.

    Raises:
        HeadError: more than two classes, which only DSMIL tells apart.
    """
    if classes > 2 and section.kind != "dsmil":
        raise HeadError(
            f"head.kind={section.kind} tells two classes apart, but there are {classes}; set"
            " head.kind to dsmil"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head weights"))
        return (
            DSMIL(features, section, classes)
            if classes > 2
            else KINDS[section.kind](features, section)
        )


def save_head(head: Head, section: params.Head, folder: Path) -> None:
    """The head as `folder/head.json` and `folder/weights.safetensors`; equal heads give equal
    bytes.
    """
    classes = {} if head.classes == 2 else {"classes": head.classes}
    write_json(
        {"features": len(head.mean), **classes, "head": section.model_dump(mode="json")},
        folder / RECORD,
    )
    with whole(folder / FILE) as temporary:
        write_tensors(head.state_dict(), temporary)


def load_head(folder: Path) -> Head:
    """The head that `save_head` wrote, or anybody, ready to predict; no pickle is read.

    Raises:
        HeadError: `folder` holds no head, or one whose record and weights do not fit each other.
    """
    return head_of(read_parts(folder, RECORD, HeadError, CURE))


def head_of(parts: Parts) -> Head:
    """As `load_head`, of what was read of its files."""
    where = f"{parts.where}/{RECORD}"
    raw = parse_json(parts.record, HeadError, what=where, cure=CURE)
    if not isinstance(raw, dict) or not {"features", "head"} <= set(raw) <= {
        "features",
        "head",
        "classes",
    }:
        raise HeadError(
            f"{where} is no head record: it holds"
            f" {sorted(map(str, raw))[:8] if isinstance(raw, dict) else type(raw).__name__}{CURE}"
        )
    features, classes = raw["features"], raw.get("classes", 2)
    for name, value, low, high in (
        ("features", features, 1, MOST_FEATURES),
        ("classes", classes, 2, MOST_CLASSES),
    ):
        if type(value) is not int or not low <= value <= high:
            raise HeadError(
                f"{where} is no head record: {name}={str(value)[:80]!r}; a whole number from {low}"
                f" to {high}{CURE}"
            )
    try:
        section = params.Head.model_validate(raw["head"])
    except ValidationError as error:
        first = error.errors()[0]
        raise HeadError(
            f"{where} is no head record: head.{'.'.join(map(str, first['loc']))}:"
            f" {first['msg']}{CURE}"
        ) from None
    state = tensors_of(parts.weights, HeadError, what=f"{parts.where}/{FILE}", cure=CURE)
    fit(
        lambda: make_head(features, section, classes), state, HeadError, what=parts.where, cure=CURE
    )
    head = make_head(features, section, classes)
    head.load_state_dict(state)
    return head.eval()
