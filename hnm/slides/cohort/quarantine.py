"""The quarantine of a cohort: slides that cannot be used, and how many are too many."""

from collections.abc import Mapping

import pandas as pd

from hnm.errors import CohortError, SlideError
from hnm.slides.reading.failures import one_line
from hnm.tables import QUARANTINE


def check_quarantine(reasons: Mapping[str, str], slides: int, max_share: float) -> None:
    """Raises `CohortError` with the reasons where more than `max_share` of the manifest's `slides`
    are in quarantine.
    """
    if len(reasons) > max_share * slides:
        listed = "".join(
            f"\n  {slide_id}: {reason}" for slide_id, reason in sorted(reasons.items())
        )
        raise CohortError(
            f"{len(reasons)} of {slides} slides are in quarantine, more than"
            f" cohort.max_quarantined_share={max_share:g} allows:{listed}"
        )


def quarantine_frame(refused: Mapping[str, SlideError]) -> pd.DataFrame:
    """Returns the rows of the table QUARANTINE for these slides."""
    rows = [(slide_id, error.step, one_line(str(error))) for slide_id, error in refused.items()]
    return pd.concat(
        [QUARANTINE.empty(), pd.DataFrame(rows, columns=list(QUARANTINE.columns), dtype=str)]
    )
