"""The errors that a user can cause, and what each asks the user to do.

Every message names the thing, its value and the cure. A command line prints the message alone and
exits with 1; any other exception is a defect of `hnm` and keeps its traceback.
"""

import errno
import os

from hnm.redaction import readable, redacted

MOST_CHARACTERS = 1_000
"""Of a line of a message: what a stranger wrote may be quoted in it, of any length."""


REMAKE = (
    "give `hnm verify --remove`, then `dvc repro`: it removes every copy of what is damaged, and"
    " the stage makes it anew"
)
"""The cure for an output that is damaged: its store and DVC's cache may hold, under other names,
the same damaged file, and would hand it out again.
"""


class HnmError(Exception):
    """Base of all errors that the input, the params or the machine's state can cause. Its message
    holds no secrets, no line without end and nothing that a terminal obeys."""

    def __init__(self, message: object = "") -> None:
        super().__init__(
            "\n".join(
                readable(_shortened(line), "\t") for line in redacted(str(message)).split("\n")
            )
        )


class ParamsError(HnmError):
    """params.yaml holds an unknown, misspelt, missing or out-of-range value; correct it there."""


class TableError(HnmError):
    """A table does not fit its schema; correct the row that the message names, or have its stage
    make it anew.
    """


class CohortError(HnmError):
    """The manifest, its labels or its splits cannot make a cohort; correct the manifest."""


class SlideError(HnmError):
    """One slide cannot be used; it goes to quarantine with this message as the reason and the
    `step` that it failed.
    """

    def __init__(self, message: object, step: str = "open") -> None:
        super().__init__(message)
        self.step = step


class MachineError(HnmError):
    """The machine failed, not the input: a full disk, too little memory, a folder that may not be
    written. The same command goes on once that is mended.
    """


class FolderError(HnmError):
    """A folder that `hnm` is to fill or to empty holds other things; name another."""


class StoreError(HnmError):
    """A stored result is damaged or gone; remove it by `hnm store verify --remove`, and give the
    same command again.
    """


class CausesError(HnmError):
    """Code, libraries or machine are not those that the stage `causes` wrote down; run it again."""


class EncoderError(HnmError):
    """An encoder cannot be made or its weights cannot be loaded; name others."""


class HeadError(HnmError):
    """A head cannot be trained on these slides; change `head`, `ranking` or the cohort."""


class MiningError(HnmError):
    """Nothing, or not what is needed, can be mined; change `mining`, or what the message names."""


class FinetuneError(HnmError):
    """The encoder cannot be trained on these tiles; change `finetune`, `simclr` or `mining`."""


class EvidenceError(HnmError):
    """Predictions and truth cannot be brought together; mend the one that the message names."""


class TrackingError(HnmError):
    """The tracking store, Git or DVC cannot be used as asked; mend that, or ask otherwise."""


class StudyError(HnmError):
    """A study cannot be started, resumed or believed as asked; begin another or mend this one."""


class PredictionError(HnmError):
    """A model cannot be read, or not be used as asked; export it again, or ask otherwise."""


def _shortened(line: str) -> str:
    """Returns a line, with its ends alone where it is too long: its subject stands first, the cure
    last.
    """
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"


_CURES = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room, or ask for a larger quota",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "look after the disk or the mount",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.ENOMEM: "free some memory",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "mend the link",
    errno.ENOENT: "bring it back (dvc pull), or run the stage that makes it (dvc repro)",
    errno.EEXIST: "move what stands in the way",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.ENOTDIR: "move the file that stands in the way",
    errno.EISDIR: "move the folder that stands in the way",
}


_KEPT = "What was finished is kept: the same command goes on"
_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python's tempfile says that it can write nowhere."""


def code_of_machine(error: BaseException) -> int | None:
    """Returns the errno of what the operating system refused, also where a library tells it in
    words alone; None where a user cannot mend it.
    """
    if isinstance(error, OSError) and error.errno in _CURES:
        return error.errno
    return next((code for code in _CURES if os.strerror(code) in str(error)), None)


def error_of_machine(error: BaseException) -> MachineError | None:
    """Returns what the operating system or the memory refused, as one line with its cure; None
    where `error` is a defect.
    """
    if isinstance(error, MemoryError):
        return MachineError(
            f"there is too little memory; free some, or ask for less at once. {_KEPT}"
        )
    if not isinstance(error, OSError):
        return None
    if _NO_TEMPORARY_FOLDER in str(error):
        return MachineError(
            "no folder for temporary files can be written to; free some room there, or name"
            f" another by the variable TMPDIR. {_KEPT}"
        )
    if (code := code_of_machine(error)) is None:
        return None
    thing = f"{error.filename}: " if error.filename else ""
    return MachineError(f"{thing}{os.strerror(code)}; {_CURES[code]}. {_KEPT}")
