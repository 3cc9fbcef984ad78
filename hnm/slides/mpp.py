"""The µm per pixel of a slide: what somebody gives, what the file states, or what scanners have
with the file's objective.
"""

from hnm.errors import SlideError
from hnm.slides.reading.slide import Mpp

PLAUSIBLE_MPP = (0.05, 20.0)
"""µm per pixel: finer than any objective resolves, and coarser than any slide scanner."""
OBJECTIVE_MPP = {40.0: 0.25, 20.0: 0.5, 10.0: 1.0}
"""Objective power -> the µm per pixel that scanners have with it, within about a tenth."""
_PLACES = "in the manifest's column mpp, or by hnm predict --mpp"


def is_plausible(mpp: float) -> bool:
    """Returns whether a slide scanner may have so many µm per pixel."""
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def slide_mpp(
    stated: Mpp | None,
    objective_power: float | None,
    *,
    given: float | None,
    from_objective: bool,
) -> Mpp:
    """Returns the µm per level-0 pixel along x and y.

    Args:
        stated: what the file states.
        objective_power: what the file states.
        given: by a person; this counts more than the file.
        from_objective: whether the objective power may stand in for what the file does not state.

    Raises:
        SlideError: nothing tells them, or they are not plausible (step `mpp`).
    """
    mpp = stated if given is None else Mpp(given, given)
    if mpp is None:
        mpp = _mpp_of_objective(objective_power, from_objective)
    if not all(map(is_plausible, mpp)):
        raise SlideError(
            f"{mpp.x:.4g} x {mpp.y:.4g} µm per pixel are not within {PLAUSIBLE_MPP[0]:g} and"
            f" {PLAUSIBLE_MPP[1]:g}; give the true value {_PLACES}",
            step="mpp",
        )
    return mpp


def _mpp_of_objective(power: float | None, allowed: bool) -> Mpp:
    fault = "its file states no µm per pixel"
    cure = f"give them {_PLACES}"
    if power is not None and not allowed:
        cure += f", or set cohort.mpp_from_objective: its objective has power {power:g}"
    elif power in OBJECTIVE_MPP:
        return Mpp(OBJECTIVE_MPP[power], OBJECTIVE_MPP[power])
    elif power is not None:
        powers = ", ".join(f"{power_with_mpp:g}" for power_with_mpp in OBJECTIVE_MPP)
        fault += f", and its objective power {power:g} is none of {powers}"
    raise SlideError(f"{fault}; {cure}", step="mpp")
