"""What a slide is called that comes as a path or URL of anybody: its id, and its name in print."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from hnm.names import LONGEST_ID
from hnm.redaction import readable
from hnm.slides.urls import file_name, kept_form

LONGEST_STEM = LONGEST_ID - 65
"""Characters of a name before a digest of up to 64 digits."""


def kept_name(source: str) -> str:
    """The path or URL as tables keep it: `readable`, without a URL's query, which may hold a token."""
    return readable(kept_form(source))


def slide_ids_of(sources: Iterable[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """A slide id for each file, in order; a file that is named twice counts once.

    An id is the file's name without suffix, other characters than an id's as `_`. Eight hexadecimal digits of the
    SHA-256 of the path or URL follow where that would not do: the name has letters of other scripts, is too long, or
    two files would have one id, upper and lower case aside. So ids do not depend on the order of the files.

    Args:
        sources: paths and URLs.
        taken: ids that files have already, by their `kept_name`; they keep them.
    """
    every = list(dict.fromkeys(sources))
    names = Counter(map(kept_name, every))
    there = {slide_id.casefold() for slide_id in (taken or {}).values()}
    taken = {name: slide_id for name, slide_id in (taken or {}).items() if names[name] < 2}  # of two URLs that differ in their query neither is that one
    waiting = [source for source in every if kept_name(source) not in taken]
    plain = {source: _plain_id(source) for source in waiting}
    counts = Counter([*there, *(slide_id.casefold() for slide_id in plain.values() if slide_id)])
    used = {key for key, count in counts.items() if count == 1} | there
    ids = {}
    for source in sorted(waiting):
        slide_id = plain[source]
        if not slide_id or counts[slide_id.casefold()] > 1:
            name = kept_name(source) if names[kept_name(source)] == 1 else source
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
            stem = (slide_id or _cleaned(source) or "slide")[:LONGEST_STEM]
            slide_id = next(f"{stem}-{digest[:digits]}" for digits in range(8, 65) if f"{stem}-{digest[:digits]}".casefold() not in used)
            used.add(slide_id.casefold())
        ids[source] = slide_id
    return {taken.get(kept_name(source)) or ids[source]: source for source in every}


def _plain_id(source: str) -> str:
    """The id that a file has by its name alone; "" where that would say too little of it, or too much."""
    stem = Path(file_name(source)).stem
    slide_id = _cleaned(source)
    return slide_id if stem.isascii() and 0 < len(slide_id) <= LONGEST_ID else ""


def _cleaned(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(file_name(source)).stem).lstrip("._-")
