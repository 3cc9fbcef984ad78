"""The stages that DVC runs: one thin file each."""
