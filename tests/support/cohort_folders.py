"""Folders of slides and outlines, as cohorts lie on a disk."""


def asap(*annotations):
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


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def left_out(draft, folder):
    """Reason -> what was left out, by its path from `folder`."""
    return {
        reason: sorted(name.removeprefix(f"{folder}/") for name in names)
        for reason, names in draft.left_out.names.items()
    }


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
