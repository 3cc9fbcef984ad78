"""Names that people give: ids, which become names of files, and free text, which people are
shown.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST_ID = 128
"""Characters of an id. Files are named by it, and a file system takes 255 with what is put
behind.
"""
ID = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}"
"""Pattern of an id, of a slide, a patient, a cohort or a study; for `fullmatch`, as `$` would let a
line feed at the end pass.
"""
ID_WORDS = (
    f"letters, digits, dots, dashes and underscores, a letter or digit first, {LONGEST_ID}"
    " characters at most"
)
SHOWN = 60
"""Characters of a text that a message shows."""


def is_id(text: str) -> bool:
    """Returns whether `text` may be an id."""
    return re.fullmatch(ID, text) is not None


def clash(ids: Iterable[str]) -> tuple[str, str] | None:
    """Returns two of `ids` that differ only in capitals, so that their files are one on macOS and
    Windows; None where there are none.
    """
    first: dict[str, str] = {}
    for name in ids:
        if (other := first.setdefault(name.casefold(), name)) != name:
            return other, name
    return None


def is_printable(text: str) -> bool:
    """Returns whether `text` can be shown and written in UTF-8 on one line: no control characters,
    line separators or lone surrogates.
    """
    return not any(
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text
    )


def quoted(text: object) -> str:
    """Returns `text` for a message: in quotes, with escapes for what cannot be shown, and
    shortened.
    """
    whole = text if isinstance(text, str) else repr(text)
    return repr(whole) if len(whole) <= SHOWN else f"{whole[:SHOWN]!r}… ({len(whole)} characters)"


def shortlist(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are."""
    shown = separator.join(names[:most])
    if len(names) <= most:
        return shown
    return f"{shown}{separator.lstrip(',')}and {len(names) - most} more"
