"""The stages that DVC runs: one thin file each."""

import sys

from hnm.processes import die_with_parent, tell_ends

GOES_ON = "what was finished is kept, and the same command (dvc repro) goes on"
"""What a stage that is interrupted says of itself."""

if sys.argv[:1] == ["-m"]:  # so it is while `python -m pipelines.<stage>` looks for the stage; importing its libraries then takes seconds
    die_with_parent()
    tell_ends(GOES_ON)
