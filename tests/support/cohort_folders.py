"""Folders of slides and outlines, as cohorts lie on a disk."""

from pathlib import Path

from hnm.slides.cohort.draft import DraftManifest

Corner = tuple[float, float]


def asap(*annotations: tuple[str, list[Corner]]) -> str:
    """ASAP's XML of (group, corners)."""
    shapes = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(
            f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(corners)
        )
        + "</Coordinates></Annotation>"
        for group, corners in annotations
    )
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{shapes}</Annotations>'
        "<AnnotationGroups/></ASAP_Annotations>"
    )


def box(left: float, top: float, right: float, bottom: float) -> list[Corner]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def left_out(draft: DraftManifest, folder: Path) -> dict[str, list[str]]:
    """Reason -> what was left out, by its path from `folder`."""
    return {
        reason: sorted(name.removeprefix(f"{folder}/") for name in names)
        for reason, names in draft.left_out.names.items()
    }


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
