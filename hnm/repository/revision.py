"""Files that git keeps, at a revision that DVC knows: a commit, a branch, a tag, an experiment, or
the working tree.
"""

from pathlib import Path

from hnm.errors import TrackingError
from hnm.files import read_bounded
from hnm.repository.outputs import Outputs
from hnm.repository.stages import CURE, MOST_YAML_BYTES

WORKSPACE = "workspace"
"""Stands for the working tree in place of a revision."""


class UnknownRevisionError(TrackingError):
    """Neither git nor DVC knows a revision of this name."""


def file_at(root: Path, revision: str, name: str) -> bytes | None:
    """The bytes of the file `name` (dvc.lock, params.yaml) at a revision; None where it has none.

    Raises:
        UnknownRevisionError: there is no such revision.
        TrackingError: the file cannot be read, or is too large.
    """
    if revision == WORKSPACE:
        path = root / name
        if not path.exists():
            return None
        return read_bounded(path, TrackingError, what=str(path), cure=CURE, most=MOST_YAML_BYTES)
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        system = DVCFileSystem(str(root), rev=revision)
        # paths of a revision count from Git's root
        inside = root.resolve().relative_to(Path(system.repo.scm.root_dir).resolve())
        # only a read looks the revision up
        content: bytes = system.read_bytes((inside / name).as_posix())
    except FileNotFoundError:
        return None
    except SCMError:
        raise UnknownRevisionError(
            f"{revision} is no revision that git or DVC knows; git log and dvc exp list show what"
            " there is"
        ) from None
    except (DvcException, OSError, ValueError) as error:  # ValueError: a name with a null character
        raise TrackingError(
            f"{name} of {revision} cannot be read: {error}; git status and dvc status tell more"
        ) from None
    return content


def bytes_of(outputs: Outputs, path: str, md5: str, inside: str | None = None) -> bytes:
    """The bytes of an output that is one file, or of the file `inside` it; they are those of the
    md5.

    Raises:
        TrackingError: it is neither in the workspace nor in DVC's cache, is damaged, or has no such
        file.
    """
    files = outputs.files(path, md5)
    name = Path(path).name if inside is None else inside
    if name not in files:
        raise TrackingError(f"{path} (md5 {md5}) holds no {name}; run dvc repro")
    return read_bounded(
        files[name], TrackingError, what=f"{path} (md5 {md5})", cure="; run dvc repro"
    )
