"""What names a slide: a path, or a URL of a protocol that is allowed. Everything that takes a
source goes through here.

To fsspec a URL can be a program (`reference::file://…`), and a manifest may be a stranger's work,
so a URL is of one protocol of a list, is not chained, and carries no user or password. Its query,
which may be a signed token, is shown and kept as `?***` everywhere; the manifest alone holds it.
"""

import ipaddress
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from hnm.errors import ParamsError, SlideError
from hnm.project import project_file
from hnm.redaction import HIDDEN

PROTOCOLS = ("s3", "gs", "az", "abfs", "abfss", "http", "https")
VARIABLE = "HNM_SLIDE_PROTOCOLS"
"""Protocols of fsspec beside these, separated by commas."""
WEB = frozenset({"http", "https"})
_NAMES_A_CONTAINER = frozenset({"az", "abfs", "abfss"})
"""Protocols whose URLs have the container where others have a user."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_url(source: str) -> bool:
    """Whether `source` is a URL and no path."""
    return "://" in source


def checked_url(url: str) -> str:
    """`url` with its protocol in small letters, where slides may be fetched from it.

    Raises:
        SlideError: its protocol is not in the list, it is chained, malformed, or carries a user or
        a password. ParamsError: HNM_SLIDE_PROTOCOLS is no list of protocols.
    """
    protocol, _, rest = url.partition("://")
    protocol = protocol.lower()
    if protocol not in (allowed := allowed_protocols()):
        raise SlideError(
            f"slides are not fetched by {protocol[:40]!r}, only by {', '.join(allowed)}; give a"
            f" path, or name it in the environment variable {VARIABLE}"
        )
    if "::" in re.sub("%3a", ":", rest, flags=re.IGNORECASE):
        raise SlideError(
            f"{file_name(url)}: its URL holds '::', which chains protocols; name one file by"
            " one URL"
        )
    if url != url.strip() or not url.isprintable() or "\\" in url:
        raise SlideError(
            f"{file_name(url)}: its URL holds blanks at its ends, backslashes or characters that"
            " cannot be printed; write it plainly"
        )
    try:
        parts = urlsplit(f"{protocol}://{rest}")
        user, password, host, _ = parts.username, parts.password, parts.hostname, parts.port
    except ValueError as error:
        raise SlideError(f"{file_name(url)}: its URL is malformed: {error}") from None
    if password is not None or (user is not None and protocol not in _NAMES_A_CONTAINER):
        raise SlideError(
            f"{file_name(url)}: its URL carries a user or a password, which would be kept with the"
            " cohort; give credentials by the environment"
        )
    if protocol in WEB and (not host or parts.fragment):
        raise SlideError(
            f"{file_name(url)}: its URL {'has a fragment (#…)' if host else 'names no server'};"
            " write it plainly"
        )
    return f"{protocol}://{rest}"


def allowed_protocols() -> tuple[str, ...]:
    """The protocols that slides are fetched by."""
    more = [
        name.strip().lower() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()
    ]
    for name in more:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*", name) or name == "reference":
            raise ParamsError(
                f"the environment variable {VARIABLE} names {name!r}, which is no protocol that"
                " slides may be fetched by; take it out"
            )
    return tuple(dict.fromkeys((*PROTOCOLS, *more)))


def file_name(source: str) -> str:
    """The name of the file at a path or URL, without the URL's query: what messages may show."""
    if not is_url(source):
        return Path(source).name
    path = re.split(r"[?#]", source.partition("://")[2], maxsplit=1)[0]
    return PurePosixPath(path).name or "a URL without a name"


def suffix_of(source: str) -> str:
    """The suffix of a source's file as a file of the cache may have it; "" where it is none that a
    slide has.
    """
    suffix = PurePosixPath(file_name(source)).suffix
    return suffix if _SUFFIX.fullmatch(suffix) and suffix.lower() not in (".lock", ".part") else ""


def place_of(path: str, folder: Path) -> str:
    """A manifest's `path` as an absolute path, counted from `folder`, or as the URL that it is."""
    return path if is_url(path) else str(project_file(folder / path))


def kept_form(source: str) -> str:
    """`source` as outputs keep it: a path as it is, a URL with `?***` in place of its query."""
    if not is_url(source):
        return source
    plain = re.split(r"[?#]", source, maxsplit=1)[0]
    protocol, _, rest = plain.partition("://")
    server, slash, path = rest.partition("/")
    if "@" in server and protocol.lower() not in _NAMES_A_CONTAINER:
        server = f"{HIDDEN}@{server.rpartition('@')[2]}"
    hidden = "" if plain == source else f"?{HIDDEN}"
    return f"{protocol}://{server}{slash}{path}{hidden}"


def lacks_query(kept: str) -> bool:
    """Whether `kept`, as `kept_form` gives it, is a URL whose query stands in the manifest
    alone.
    """
    return is_url(kept) and kept.endswith(f"?{HIDDEN}")


def is_inside(address: str) -> bool:
    """Whether an IP address is one of this machine or this house: loopback, link-local, private, or
    none that the internet routes.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1]):
            return is_inside(str(inner))
        if ip in _NAT64:
            return is_inside(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return not ip.is_global or ip.is_multicast
