"""Stage `cohort`: the checked cohort, from the manifest and the slides' headers."""

from hnm.loop.cohort import check_cohort
from hnm.loop.paths import CohortFiles
from hnm.params import Cohort, Split
from pipelines import stage


def main(files: CohortFiles, *, cohort: Cohort, split: Split) -> None:
    """Checks the manifest, opens each slide for its fingerprint, and assigns splits."""
    check_cohort(files, cohort=cohort, split=split)


if __name__ == "__main__":
    stage.run(main)
