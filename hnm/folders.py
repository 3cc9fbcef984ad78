"""Folders that `hnm` fills and empties by itself.

Each of them carries a mark; a folder that holds anything else is refused. The mark is an empty
file, `.hnm-store` or `.hnm-slides`, which is set when the folder is made or is still empty. So a
variable that names a wrong folder costs nobody a file.
"""

import errno
import os
import stat
from pathlib import Path

from hnm.errors import FolderError
from hnm.files import TEMPORARY, whole


def marked_folder(
    folder: Path, purpose: str, *, named_by: str, adopts: bool = False, private: bool = False
) -> Path:
    """Returns `folder` as an absolute path, made and marked for `purpose` where it is new or empty.

    A `~` that no shell has replaced is the user's home.

    Args:
        folder: absolute, or counted from the working directory.
        purpose: `store` or `slides`; the mark is the file `.hnm-<purpose>`.
        named_by: the variable that names the folder, for the error: `HNM_STORE`.
        adopts: whether an unmarked folder that holds something is marked too, in a place that no
            one but `hnm` writes to.
        private: whether other users must not be able to write to it.

    Raises:
        FolderError: it holds other things and no mark, is no folder, cannot be made or read, or
            others may write to one that must be private.
    """
    try:
        folder = folder.expanduser().absolute()
        folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        return _marked(folder, purpose, named_by, adopts=adopts, private=private)
    except (FileExistsError, NotADirectoryError):
        raise FolderError(
            f"{named_by}={folder} is no folder, or lies in what is none; name a new or empty folder"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home in the place of ~
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the machine: no other name would help
        raise FolderError(
            f"{named_by}={folder} cannot be made or used: {getattr(error, 'strerror', error)};"
            " mend that, or name another folder"
        ) from None


def _marked(folder: Path, purpose: str, named_by: str, *, adopts: bool, private: bool) -> Path:
    if private:
        _check_private(folder, named_by)
    mark = folder / f".hnm-{purpose}"
    if _is_mark(mark):
        return folder
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY))
    if not (mark.name in names and _is_mark(mark)):  # else another process has set it since
        if names and not adopts:
            raise FolderError(
                f"{named_by}={folder} holds other things ({names[0]}), but hnm empties the folder"
                f" of its {purpose}: name a new or empty one; if an earlier version of hnm made it"
                f" and it holds nothing else, mark it: touch {mark}"
            )
        with whole(mark):
            pass
    return folder


def _is_mark(mark: Path) -> bool:
    """Returns whether the mark is a file; a link leads to another folder's mark, and marks none."""
    try:
        return stat.S_ISREG(mark.lstat().st_mode)
    except FileNotFoundError:
        return False


def _check_private(folder: Path, named_by: str) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise FolderError(
            f"{named_by}={folder} belongs to another user (id {status.st_uid}); name a folder of"
            " your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FolderError(
            f"others may write to {named_by}={folder}; take that right away (chmod go-w), or name"
            " another folder"
        )
