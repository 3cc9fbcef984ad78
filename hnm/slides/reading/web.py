"""Files of web servers, which are fetched byte for byte within bounds of size and time.

The standard library's client serves here, and not fsspec's, which follows each redirect, takes a
refusal for a missing file, and writes as many bytes as come.
"""

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from urllib.parse import quote, urljoin, urlsplit

from hnm.errors import MachineError, SlideError
from hnm.slides.reading.failures import StorageError, short_line
from hnm.slides.reading.urls import WEB, checked_url, file_name, is_inside, is_url

MOST_REDIRECTS = 5
SILENT_SECONDS = 60.0
"""A server that is silent for longer is given up, as is one whose answer has not begun by then."""
CHUNK = 1 << 20
_MOVED = frozenset({301, 302, 303, 307, 308})
_REFUSED = frozenset({401, 403, 407})
_GONE = frozenset({404, 410})
_PASSING = frozenset({408, 409, 425, 429})
"""Answers below 500 after which the same request may succeed later."""
_HEADERS = {"User-Agent": "hnm", "Accept-Encoding": "identity", "Accept": "*/*"}
_UNQUOTED = "%/:=&?~#+!$,;'@()*[]"


def web_version(url: str) -> tuple[int | None, str]:
    """Returns size in bytes and entity tag, or else time of change, of a file.

    They are None and "" where its server does not state them.

    Raises:
        SlideError: it does not exist, or its server leads to where none may be followed.
        StorageError: its server fails, which may pass.
        MachineError: this user may not read it, or does not know its server's certificate.
    """
    for method in ("HEAD", "GET"):  # a signed URL may be signed for GET alone
        with _answer(url, method) as answer:
            size = _size(answer)
            if answer.status == HTTPStatus.OK and (size is not None or method == "GET"):
                _check_plain(answer, url)
                return size, answer.getheader("ETag") or answer.getheader("Last-Modified") or ""
            if method == "GET" or answer.status in _GONE:
                raise refusal_of(answer.status, url)
    raise AssertionError("the second method returns or raises")


def web_bytes(url: str) -> Iterator[bytes]:
    """Yields the bytes of a file as they come, and raises as `web_version` does."""
    name = file_name(url)
    with _answer(url, "GET") as answer:
        if answer.status != HTTPStatus.OK:
            raise refusal_of(answer.status, url)
        _check_plain(answer, url)
        with _errors(name):
            while chunk := answer.read1(CHUNK):
                yield chunk


def refusal_of(status: int, url: str) -> SlideError | MachineError:
    """Returns the error of the slide at `url` for a status of its server other than success."""
    name = file_name(url)
    answer = f"{status} {http.client.responses.get(status, '')}".strip()
    if status in _GONE:
        return SlideError(f"{name} does not exist")
    if status in _REFUSED:
        return MachineError(
            f"{name} may not be read (its server answers {answer}); give credentials that may, or a"
            " URL whose signature is still valid"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
        return StorageError(f"{name} cannot be fetched: its server answers {answer}")
    return SlideError(
        f"{name} cannot be fetched: its server answers {answer}; correct its URL, or fetch it"
        " yourself and give a path"
    )


def _check_plain(answer: http.client.HTTPResponse, url: str) -> None:
    encoding = answer.getheader("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise SlideError(
            f"{file_name(url)}: its server sends it packed (Content-Encoding {encoding[:20]!r}), so"
            " its size is unknown; fetch it yourself and give a path"
        )


def _size(answer: http.client.HTTPResponse) -> int | None:
    stated = answer.getheader("Content-Length", "").strip()
    return int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 20 else None


@contextmanager
def _answer(url: str, method: str) -> Iterator[http.client.HTTPResponse]:
    """Yields the answer at the end of a URL's redirects.

    Each of them is checked before its server is spoken to.
    """
    name = file_name(url)
    went_outside = False
    for _ in range(MOST_REDIRECTS + 1):
        with _errors(name):
            connection, is_outside = _connected(url, name, may_be_inside=not went_outside)
        went_outside |= is_outside
        try:
            with _errors(name), _begun_in_time(connection.sock):
                parts = urlsplit(url)
                path = parts.path or "/"
                target = f"{path}?{parts.query}" if parts.query else path
                connection.request(method, quote(target, safe=_UNQUOTED), headers=_HEADERS)
                answer = connection.getresponse()
            if answer.status not in _MOVED:
                yield answer
                return
            url = _moved(url, answer.getheader("Location", ""), name)
        finally:
            connection.close()
    raise SlideError(
        f"{name}: its server redirects more than {MOST_REDIRECTS} times; give the URL that it"
        " ends at"
    )


def _moved(url: str, location: str, name: str) -> str:
    """Returns the URL that a redirect leads to, if it may be followed."""
    try:
        target = urljoin(url, location)
        if not location or not is_url(target):
            raise SlideError("it names no URL")
        target = checked_url(target)
    except (SlideError, ValueError) as error:
        raise SlideError(
            f"{name}: its server redirects to where hnm does not follow ({error}); give the URL"
            " that it ends at"
        ) from None
    before = urlsplit(url).scheme
    after = urlsplit(target).scheme
    if after not in WEB or (before == "https" and after == "http"):
        raise SlideError(
            f"{name}: its server redirects from {before} to {after}, which hnm does not follow;"
            " give the URL that it ends at"
        )
    return target


def _connected(
    url: str, name: str, *, may_be_inside: bool
) -> tuple[http.client.HTTPConnection, bool]:
    """Returns a connection to the address that was checked, and whether it is of the internet."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    addresses = [
        str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    inside = any(is_inside(address) for address in addresses)
    if inside and not may_be_inside:
        raise SlideError(
            f"{name}: its server redirects into this house ({host} is a loopback, link-local or"
            " private address), which hnm does not follow"
        )
    stream = _open_stream(addresses, port)
    if secure:
        try:
            stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host)
        except BaseException:
            stream.close()
            raise
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port, timeout=SILENT_SECONDS)
    connection.sock = stream
    return connection, not inside


def _open_stream(addresses: list[str], port: int) -> socket.socket:
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout=SILENT_SECONDS)
        except OSError:
            continue  # a name may have several addresses, of which some are not reached from here
    return socket.create_connection((addresses[-1], port), timeout=SILENT_SECONDS)


@contextmanager
def _begun_in_time(stream: socket.socket) -> Iterator[None]:
    """Ends a request whose answer has not begun after `SILENT_SECONDS`.

    A server may also send its headers byte by byte.
    """
    late = threading.Event()
    timer = threading.Timer(SILENT_SECONDS, _shut, [stream, late])
    timer.daemon = True
    timer.start()
    try:
        yield
    except OSError:
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():  # what had come by then looks like a whole answer
        raise TimeoutError


def _shut(stream: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # it has ended since
        # not the shutdown of TLS, which would wait for the server
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turns errors of a connection into errors of the slide `name`."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise MachineError(
            f"{name}: its server's certificate is not valid here ({error.verify_message}); have it"
            " mended, or name your house's certificates by SSL_CERT_FILE"
        ) from None
    except ssl.SSLError as error:
        raise StorageError(
            f"{name} cannot be fetched: TLS fails ({error.reason or error})"
        ) from None
    except TimeoutError:
        raise StorageError(
            f"{name} cannot be fetched: its server was silent for {SILENT_SECONDS:g} s"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = short_line(f"{type(error).__name__} {error}")  # it may quote what a server sent
        raise StorageError(f"{name} cannot be fetched: {reason.rstrip()}") from None
    except ValueError as error:  # a host that is no name, or a target that http refuses
        raise SlideError(f"{name}: its URL is malformed: {error}") from None
