"""The kinds of heads, and how a head is made, kept and read."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hnm import params
from hnm.draws import seed_of
from hnm.errors import HeadError
from hnm.files import read_json, whole, write_json
from hnm.learning.heads.abmil import ABMIL
from hnm.learning.heads.clam_sb import CLAMSB
from hnm.learning.heads.dsmil import DSMIL
from hnm.learning.heads.head import Head
from hnm.learning.heads.inherit import Inherit
from hnm.learning.heads.max import Max
from hnm.learning.heads.mean import Mean
from hnm.learning.heads.mined import Mined
from hnm.learning.heads.transmil import TransMIL

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
    """A new head of kind `head.kind` for features of this width; its weights are drawn from `head.seed`.

    Raises:
        HeadError: more than two classes, which only DSMIL tells apart.
    """
    if classes > 2 and section.kind != "dsmil":
        raise HeadError(f"head.kind={section.kind} tells two classes apart, but there are {classes}; set head.kind to dsmil")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head weights"))
        return DSMIL(features, section, classes) if classes > 2 else KINDS[section.kind](features, section)


def save_head(head: Head, section: params.Head, folder: Path) -> None:
    """The head as `folder/head.json` and `folder/weights.safetensors`; equal heads give equal bytes."""
    classes = {} if head.classes == 2 else {"classes": head.classes}
    write_json({"features": len(head.mean), **classes, "head": section.model_dump(mode="json")}, folder / "head.json")
    with whole(folder / "weights.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, temporary)


def load_head(folder: Path) -> Head:
    """The head that `save_head` wrote, ready to predict; no pickle is read.

    Raises:
        HeadError: `folder` holds no head, or one whose record and weights do not fit each other.
    """
    record = read_json(folder / "head.json", HeadError)
    try:
        head = make_head(record["features"], params.Head.model_validate(record["head"]), record.get("classes", 2))
        head.load_state_dict(load_file(folder / "weights.safetensors"))
    except (KeyError, TypeError, ValueError, RuntimeError, FileNotFoundError, SafetensorError) as error:
        raise HeadError(f"{folder} holds no head that can be read ({error}); run the stage that makes it again") from None
    return head.eval()
