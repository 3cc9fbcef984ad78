"""Heads, a file for each kind: the features of one slide to its logit, its tiles' logits and their
attention.
"""

from hnm.learning.heads.head import Head, HeadOutput
from hnm.learning.heads.kinds import KINDS, head_of, load_head, make_head, save_head
from hnm.learning.heads.mined import Mined

__all__ = ["KINDS", "Head", "HeadOutput", "Mined", "head_of", "load_head", "make_head", "save_head"]
