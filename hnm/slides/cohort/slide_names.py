"""What a slide is called that comes as a path or URL of anybody: its id, and its name in print.
Converters and `predict` name slides alike.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from hnm.names import LONGEST_ID
from hnm.redaction import readable
from hnm.slides.reading.urls import file_name, is_url, kept_form

LONGEST_STEM = LONGEST_ID - 65
"""Characters of a name before a digest of up to 64 digits."""


def kept_name(source: str) -> str:
    """The path or URL as tables keep it: `readable`, without a URL's query, which may hold a
    token.
    """
    return readable(kept_form(source))


def whole_source(source: str) -> str:
    """A path as an absolute one, so that equal names in two working directories are two slides; a
    URL as it is.
    """
    if is_url(source):
        return source
    return os.path.abspath(source)  # noqa: PTH100 (Path.absolute keeps `..`)


def slide_ids_of(
    sources: Iterable[str],
    taken: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A slide id for each file, in order; a file that is named twice counts once.

    An id is the file's name without suffix, other characters than an id's as `_`. Where the name
    has letters of other scripts or is too long, eight hexadecimal digits of the SHA-256 of the
    file's name follow; they are of the whole path or URL where two files would have one id, upper
    and lower case aside. So ids do not depend on the order of the files.

    Args:
        sources: paths and URLs.
        taken: ids that files have already, by their `kept_name`; they keep them.
        names: what is taken for the name of the file, for the sources whose file says too little.
    """
    every = list(dict.fromkeys(sources))
    counts = Counter(map(kept_name, every))
    there = {slide_id.casefold() for slide_id in (taken or {}).values()}
    taken = {
        name: slide_id for name, slide_id in (taken or {}).items() if counts[name] < 2
    }  # of two URLs that differ in their query neither is that one
    waiting = [source for source in every if kept_name(source) not in taken]
    plain = {
        source: _plain_id((names or {}).get(source) or file_name(source)) for source in waiting
    }
    wanted = Counter([*there, *(slide_id.casefold() for slide_id in plain.values())])
    used = {key for key, count in wanted.items() if count == 1} | there
    ids = {}
    for source in sorted(waiting):
        slide_id = plain[source]
        if wanted[slide_id.casefold()] > 1:
            digest = _digest(kept_name(source) if counts[kept_name(source)] == 1 else source)
            stem = slide_id[:LONGEST_STEM]
            slide_id = next(
                f"{stem}-{digest[:digits]}"
                for digits in range(8, 65)
                if f"{stem}-{digest[:digits]}".casefold() not in used
            )
            used.add(slide_id.casefold())
        ids[source] = slide_id
    return {taken.get(kept_name(source)) or ids[source]: source for source in every}


def _plain_id(name: str) -> str:
    """The id that a file has by its name alone. Names that look alike are written alike: macOS
    writes ü as two characters.
    """
    name = unicodedata.normalize("NFC", name)
    stem = Path(name).stem
    slide_id = re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-")
    if stem.isascii() and 0 < len(slide_id) <= LONGEST_ID:
        return slide_id
    return f"{slide_id[:LONGEST_STEM] or 'slide'}-{_digest(name)[:8]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
