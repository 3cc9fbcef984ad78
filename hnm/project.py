"""The project that the working directory belongs to: its root, its home, and its files."""

import os
from pathlib import Path


def project_root() -> Path:
    """Returns the folder of the project: the nearest one upwards with a params.yaml and a dvc.yaml.

    `cv` and `studies/NAME` have a dvc.yaml alone, and belong to the project above. In the copy in
    which `dvc exp run --temp` and `--queue` run it is the copy. Outside of any project it is
    DVC_ROOT, and else the working directory.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    return Path(os.environ.get("DVC_ROOT") or here)


def project_home() -> Path:
    """Returns the folder of what a project has once, and no copy of it: store, spool, ledgers of
    cost and of test openings, runs of MLflow.

    It is the project's root, or for a copy that DVC has made for an experiment (a clone in
    `.dvc/tmp/exps`, thrown away when it has ended) the root of the project that was copied.
    DVC_ROOT does not tell it: where DVC's root lies above the project's, it names the former.
    """
    root = project_root()
    clone = _above(root, ".git")
    if clone is None or (".dvc", "tmp", "exps") not in zip(
        clone.parts, clone.parts[1:], clone.parts[2:], strict=False
    ):
        return root
    dvc = next(folder for folder in clone.parents if folder.name == ".dvc")
    original = _above(dvc.parent, ".git")
    return root if original is None else original / root.relative_to(clone)


def project_file(path: Path) -> Path:
    """Returns `path`, or where an experiment's copy of the project lacks it, as git ignores it, the
    same file of the project itself.
    """
    if os.path.lexists(path):
        return path
    root = project_root()
    home = project_home()
    absolute = Path.cwd() / path
    if root == home or not absolute.is_relative_to(root):
        return path
    return home / absolute.relative_to(root)


def _above(folder: Path, name: str) -> Path | None:
    """Returns the nearest of `folder` and the folders above it that holds something of this
    name.
    """
    return next((above for above in (folder, *folder.parents) if (above / name).exists()), None)
