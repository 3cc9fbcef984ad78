"""Sources of slides: paths, or URLs of a protocol that is allowed.

Everything that takes a source goes through here.

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
"""The environment variable that names more protocols of fsspec, separated by commas."""
WEB = frozenset({"http", "https"})
_NAMES_A_CONTAINER = frozenset({"az", "abfs", "abfss"})
"""Protocols whose URLs have the container where others have a user."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_url(source: str) -> bool:
    """Returns whether `source` is a URL and no path."""
    return "://" in source


def checked_url(url: str) -> str:
    """Returns `url` with its protocol in small letters, where slides may be fetched from it.

    Raises:
        SlideError: its protocol is not in the list, it is chained, malformed, or carries a user or
            a password.
        ParamsError: HNM_SLIDE_PROTOCOLS is no list of protocols.
    """
    protocol, _, rest = url.partition("://")
    protocol = protocol.lower()
    allowed = allowed_protocols()
    if protocol not in allowed:
        raise SlideError(
            f"slides are not fetched by {protocol[:40]!r}, only by {', '.join(allowed)}; give a"
            f" path, or name it in the environment variable {VARIABLE}"
        )
    name = file_name(url)
    if "::" in re.sub("%3a", ":", rest, flags=re.IGNORECASE):
        raise SlideError(
            f"{name}: its URL holds '::', which chains protocols; name one file by one URL"
        )
    if url != url.strip() or not url.isprintable() or "\\" in url:
        raise SlideError(
            f"{name}: its URL holds blanks at its ends, backslashes or characters that"
            " cannot be printed; write it plainly"
        )
    try:
        parts = urlsplit(f"{protocol}://{rest}")
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise SlideError(f"{name}: its URL is malformed: {error}") from None
    has_user = parts.username is not None and protocol not in _NAMES_A_CONTAINER
    if parts.password is not None or has_user:
        raise SlideError(
            f"{name}: its URL carries a user or a password, which would be kept with the"
            " cohort; give credentials by the environment"
        )
    if protocol in WEB and (not parts.hostname or parts.fragment):
        fault = "has a fragment (#…)" if parts.hostname else "names no server"
        raise SlideError(f"{name}: its URL {fault}; write it plainly")
    return f"{protocol}://{rest}"


def allowed_protocols() -> tuple[str, ...]:
    """Returns the protocols that slides are fetched by."""
    names = [name.strip().lower() for name in os.environ.get(VARIABLE, "").split(",")]
    more = [name for name in names if name]
    for name in more:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*", name) or name == "reference":
            raise ParamsError(
                f"the environment variable {VARIABLE} names {name!r}, which is no protocol that"
                " slides may be fetched by; take it out"
            )
    return tuple(dict.fromkeys((*PROTOCOLS, *more)))


def file_name(source: str) -> str:
    """Returns the name of the file at a path or URL, without the query, as messages may show it."""
    if not is_url(source):
        return Path(source).name
    path = re.split(r"[?#]", source.partition("://")[2], maxsplit=1)[0]
    return PurePosixPath(path).name or "a URL without a name"


def suffix_of(source: str) -> str:
    """Returns the suffix of a source's file, or "" where a file of the cache may not have it."""
    suffix = PurePosixPath(file_name(source)).suffix
    return suffix if _SUFFIX.fullmatch(suffix) and suffix.lower() not in (".lock", ".part") else ""


def place_of(path: str, folder: Path) -> str:
    """Returns a manifest's `path` as an absolute path, counted from `folder`, or as its URL."""
    return path if is_url(path) else str(project_file(folder / path))


def kept_form(source: str) -> str:
    """Returns `source` as outputs hold it: a path as it is, a URL with `?***` for its query."""
    if not is_url(source):
        return source
    plain = re.split(r"[?#]", source, maxsplit=1)[0]
    protocol, _, rest = plain.partition("://")
    server, slash, path = rest.partition("/")
    if "@" in server and protocol.lower() not in _NAMES_A_CONTAINER:
        server = f"{HIDDEN}@{server.rpartition('@')[2]}"
    hidden = "" if plain == source else f"?{HIDDEN}"
    return f"{protocol}://{server}{slash}{path}{hidden}"


def lacks_query(source: str) -> bool:
    """Returns whether the query of `source`, as `kept_form` gives it, is in the manifest alone."""
    return is_url(source) and source.endswith(f"?{HIDDEN}")


def is_inside(address: str) -> bool:
    """Returns whether an IP address is one of this machine or this house.

    Such addresses are loopback, link-local, private, or not routed by the internet.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1]):
            return is_inside(str(inner))
        if ip in _NAT64:
            return is_inside(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return not ip.is_global or ip.is_multicast
