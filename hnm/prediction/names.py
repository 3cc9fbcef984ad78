"""What a slide is called that comes as a path or URL of anybody: its id, and its name in print."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from hnm.slides.remote import file_name

MOST_ID = 160
"""Characters of an id: names of files are made of it."""


def readable(text: str) -> str:
    """`text` with what cannot be printed, or is not UTF-8, as escapes: a file name of any bytes can stand in a table, and harms no terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(ord(character)) for character in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # how Python holds a byte of a name that is not UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def slide_ids_of(sources: Iterable[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """A slide id for each file, in order; a file that is named twice counts once.

    An id is the file's name without suffix, other characters than an id's as `_`. Eight hexadecimal digits of the
    SHA-256 of the path or URL follow where that would not do: the name has letters of other scripts, is too long, or
    two files would have one id, upper and lower case aside. So ids do not depend on the order of the files.

    Args:
        sources: paths and URLs.
        taken: ids that files have already, by the path or URL as `readable` gives it; they keep them.
    """
    taken = taken or {}
    waiting = [source for source in dict.fromkeys(sources) if readable(source) not in taken]
    plain = {source: _plain_id(source) for source in waiting}
    counts = Counter(slide_id.casefold() for slide_id in (*taken.values(), *(slide_id for slide_id in plain.values() if slide_id)))
    used = {slide_id.casefold() for slide_id in taken.values()} | {key for key, count in counts.items() if count == 1}
    ids = {}
    for source in sorted(waiting):
        slide_id = plain[source]
        if not slide_id or counts[slide_id.casefold()] > 1:
            digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
            stem = (slide_id or _cleaned(source) or "slide")[:MOST_ID]
            slide_id = next(f"{stem}-{digest[:digits]}" for digits in range(8, 65) if f"{stem}-{digest[:digits]}".casefold() not in used)
            used.add(slide_id.casefold())
        ids[source] = slide_id
    return {taken.get(readable(source)) or ids[source]: source for source in dict.fromkeys(sources)}


def _plain_id(source: str) -> str:
    """The id that a file has by its name alone; "" where that would say too little of it, or too much."""
    stem = Path(file_name(source)).stem
    slide_id = _cleaned(source)
    return slide_id if stem.isascii() and 0 < len(slide_id) <= MOST_ID else ""


def _cleaned(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(file_name(source)).stem).lstrip("._-")
