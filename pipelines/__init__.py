"""The stages that DVC runs: one thin file each."""

import sys

from hnm.processes import STAGE_GOES_ON, die_with_parent, tell_ends

if (
    sys.argv[:1] == ["-m"]
    # so it is while `python -m pipelines.<stage>` looks for the stage; importing its libraries then
    # takes seconds
):
    die_with_parent()
    tell_ends(STAGE_GOES_ON)
