"""The errors that a user can cause, and what each asks the user to do.

Every message names the thing, its value and the cure. A command line prints the message alone and exits with 1;
any other exception is a defect of `hnm` and keeps its traceback.
"""


class HnmError(Exception):
    """Base of all errors that the input, the params or the machine's state can cause."""


class ParamsError(HnmError):
    """params.yaml holds an unknown, misspelt, missing or out-of-range value."""


class TableError(HnmError):
    """A table does not fit its schema; the message names file, column and row."""


class CohortError(HnmError):
    """The manifest, its labels or its splits cannot make a cohort."""


class SlideError(HnmError):
    """One slide cannot be used; it goes to quarantine with this message as the reason and the `step` that it failed."""

    def __init__(self, message: str, step: str = "open") -> None:
        super().__init__(message)
        self.step = step


class EncoderError(HnmError):
    """An encoder cannot be made or its weights cannot be loaded."""


class HeadError(HnmError):
    """A head cannot be trained on what it was given."""


class MiningError(HnmError):
    """Nothing, or not what is needed, can be mined."""


class FinetuneError(HnmError):
    """The encoder cannot be fine-tuned on what it was given."""


class EvidenceError(HnmError):
    """Predictions and truth cannot be brought together."""


class TrackingError(HnmError):
    """The tracking store cannot be used as asked."""


class StudyError(HnmError):
    """A study cannot be started, resumed or believed as asked."""


class PredictionError(HnmError):
    """A model cannot be read, or not be used as asked."""
