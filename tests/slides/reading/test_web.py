"""Slides of web servers that fail, lie, hang and redirect: real servers on loopback."""

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hnm.errors import MachineError, SlideError
from hnm.slides.reading import remote, web
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.remote import fetched, version_of

SLIDE = bytes(range(256)) * 40
Answers = dict[str, Callable[[BaseHTTPRequestHandler], None]]


@pytest.fixture
def answers() -> Answers:
    """What the server does at each path."""
    return {}


@pytest.fixture
def server(answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server; it keeps a list of the requests in `server.asked`."""
    monkeypatch.setenv("HNM_SLIDE_CACHE", str(tmp_path / "cache"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            answers.get(self.path.partition("?")[0], status(404))(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def gives(
    body: bytes = SLIDE, stated: int | None = len(SLIDE), sent: bytes | None = None, **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers 200 with `stated` bytes, and sends `sent` in their place where it is given."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if stated is not None:
            handler.send_header("Content-Length", str(stated))
        handler.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body if sent is None else sent)

    return answer


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def refused(url: str) -> SlideError | MachineError:
    with pytest.raises((SlideError, MachineError)) as caught, fetched(url):
        pass
    assert "hush" not in str(caught.value) and str(caught.value).isprintable()
    return caught.value


def test_a_slide_comes_byte_for_byte(server: str, answers: Answers) -> None:
    answers["/deep/a%20b.svs"] = gives()
    with fetched(f"{server}/deep/a b.svs?sig=hush") as path:
        assert (path.suffix, path.read_bytes()) == (".svs", SLIDE)


def test_a_url_that_is_signed_for_get_alone(server: str, answers: Answers) -> None:
    whole = gives()
    answers["/a.svs"] = lambda handler: (whole if handler.command == "GET" else status(403))(
        handler
    )
    with fetched(f"{server}/a.svs?sig=hush") as path:
        assert path.read_bytes() == SLIDE


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (404, SlideError, "^a.svs does not exist$"),
        (410, SlideError, "^a.svs does not exist$"),
        (
            401,
            MachineError,
            (
                r"^a.svs may not be read \(its server answers 401 Unauthorized\); give credentials"
                r" that may, or a URL whose signature is still valid$"
            ),
        ),
        (403, MachineError, r"^a.svs may not be read \(its server answers 403 Forbidden\)"),
        (
            400,
            SlideError,
            "^a.svs cannot be fetched: its server answers 400 Bad Request; correct its URL",
        ),
        (206, SlideError, "^a.svs cannot be fetched: its server answers 206 Partial Content"),
        (429, StorageError, "^a.svs cannot be fetched: its server answers 429 Too Many Requests$"),
        (
            500,
            StorageError,
            "^a.svs cannot be fetched: its server answers 500 Internal Server Error$",
        ),
        (502, StorageError, "answers 502 Bad Gateway$"),
        (599, StorageError, "answers 599$"),
    ],
)
def test_what_a_server_refuses_is_told_apart(
    server: str, answers: Answers, code: int, kind: type[Exception], message: str
) -> None:
    answers["/a.svs"] = status(code)
    with pytest.raises((SlideError, MachineError), match=message) as caught:
        version_of(f"{server}/a.svs?sig=hush")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (gives(stated=None), SlideError, "a.svs: its server does not tell its size"),
        (
            gives(stated=None, Content_Length="7, 7"),
            SlideError,
            "a.svs: its server does not tell its size",
        ),
        (
            gives(stated=None, Content_Length="-7"),
            SlideError,
            "a.svs: its server does not tell its size",
        ),
        (
            gives(stated=10**18),
            SlideError,
            "a.svs: its server states 1000000 TB, which no slide has",
        ),
        (
            gives(Content_Encoding="gzip"),
            SlideError,
            r"a.svs: its server sends it packed \(Content-Encoding 'gzip'\)",
        ),
        (
            gives(sent=SLIDE[:-1]),
            StorageError,
            "a.svs changed while it was fetched: 10239 bytes came, 10240 are there now",
        ),
        (
            gives(sent=b""),
            StorageError,
            "a.svs changed while it was fetched: 0 bytes came, 10240 are there now",
        ),
    ],
)
def test_servers_that_lie(
    server: str,
    answers: Answers,
    tmp_path: Path,
    answer: Callable[..., None],
    kind: type[Exception],
    message: str,
) -> None:
    answers["/a.svs"] = answer
    with (
        pytest.raises((SlideError, MachineError), match=message) as caught,
        fetched(f"{server}/a.svs?sig=hush"),
    ):
        pass
    assert type(caught.value) is kind
    assert not list((tmp_path / "cache").glob("*.svs")) + list((tmp_path / "cache").glob("*.part"))


def test_a_server_that_sends_more_than_it_states_is_cut(
    server: str, answers: Answers, tmp_path: Path
) -> None:
    sent = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "HEAD":
            return gives()(handler)
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for _ in range(10_000):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(SLIDE), SLIDE))
                sent.append(len(SLIDE))
        except OSError:
            pass  # it hangs up
        return None

    answers["/a.svs"] = answer
    error = refused(f"{server}/a.svs")
    assert (type(error), str(error)) == (
        StorageError,
        "a.svs: its server states 10240 bytes but sends more; none of them is used",
    )
    assert sum(sent) < 10_000 * len(SLIDE)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_slide_that_is_replaced_while_it_is_fetched(server: str, answers: Answers) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        gives()(handler)
        if handler.command == "GET":
            answers["/a.svs"] = gives(body=SLIDE[::-1])

    answers["/a.svs"] = answer
    assert "a.svs changed while it was fetched" in str(refused(f"{server}/a.svs"))


def drip(handler: BaseHTTPRequestHandler, beginning: bytes) -> None:
    """Sends `beginning`, then a byte now and then, until the other side hangs up."""
    try:
        handler.wfile.write(beginning)
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.02)
    except OSError:
        pass


def test_a_byte_now_and_then_ends(
    server: str, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SLOW_SECONDS", 0.2)
    head = gives()
    answers["/a.svs"] = lambda handler: (
        head(handler)
        if handler.command == "HEAD"
        else drip(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n")
    )
    began = time.monotonic()
    error = refused(f"{server}/a.svs")
    assert isinstance(
        error, StorageError
    ) and "bytes came in 0 s; its server is too slow, or hangs" in str(error)
    assert time.monotonic() - began < 2


def test_headers_byte_by_byte_end(
    server: str, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "SILENT_SECONDS", 0.2)
    answers["/a.svs"] = lambda handler: drip(handler, b"HTTP/1.1 200 OK\r\nX-Endless: ")
    began = time.monotonic()
    error = refused(f"{server}/a.svs")
    assert (
        isinstance(error, StorageError)
        and str(error) == "a.svs cannot be fetched: its server was silent for 0.2 s"
    )
    assert time.monotonic() - began < 2


def test_a_server_that_is_silent_or_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HNM_SLIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "SILENT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert isinstance(refused(f"http://127.0.0.1:{port}/a.svs"), StorageError)
    error = refused(f"http://127.0.0.1:{port}/a.svs")
    assert isinstance(
        error, StorageError
    ) and "a.svs cannot be fetched: ConnectionRefusedError" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"",
        bytes(range(255, 0, -1)),
    ],
)
def test_what_is_no_http(answers: Answers, server: str, answer: bytes) -> None:
    answers["/a.svs"] = lambda handler: handler.wfile.write(answer)
    assert isinstance(refused(f"{server}/a.svs?sig=hush"), StorageError)


class TestRedirects:
    def test_one_is_followed(self, server: str, answers: Answers) -> None:
        answers["/a.svs"] = status(302, Location="/b.svs?sig=hush")
        answers["/b.svs"] = gives()
        with fetched(f"{server}/a.svs") as path:
            assert path.read_bytes() == SLIDE

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            (
                "file:///etc/passwd",
                (
                    "a.svs: its server redirects to where hnm does not follow .slides are not"
                    " fetched by 'file'"
                ),
            ),
            (
                "ftp://h/a.svs",
                "redirects to where hnm does not follow .slides are not fetched by 'ftp'",
            ),
            ("s3://bucket/a.svs", "redirects from http to s3, which hnm does not follow"),
            ("http://u:hush@h/a.svs", "carries a user or a password"),
            ("http://h/a::b", "chains protocols"),
            ("http://[h/a", "redirects to where hnm does not follow"),
            ("", "it names no URL"),
            ("/a.svs", "redirects more than 5 times; give the URL that it ends at"),
        ],
    )
    def test_others_are_not(
        self, server: str, answers: Answers, location: str, message: str
    ) -> None:
        answers["/a.svs"] = status(302, Location=location)
        with pytest.raises((SlideError, MachineError), match=message) as caught:
            version_of(f"{server}/a.svs")
        assert "hush" not in str(caught.value) and not isinstance(caught.value, StorageError)

    @pytest.mark.parametrize(
        "inner",
        ["inside.test", "2130706434", "127.0.0.2", "[0:0:0:0:0:ffff:127.0.0.2]", "mixed.test"],
    )
    def test_from_outside_none_leads_inside(
        self, server: str, answers: Answers, monkeypatch: pytest.MonkeyPatch, inner: str
    ) -> None:
        """Here 127.0.0.1 plays the internet; every way to name 127.0.0.2 leads into the house."""
        addresses = {
            "outside.test": ["127.0.0.1"],
            "inside.test": ["127.0.0.2"],
            "mixed.test": ["127.0.0.1", "127.0.0.2"],
        }
        asked: list[str] = []
        really = socket.getaddrinfo

        def resolved(host: str, *rest: int, **options: int) -> list[tuple[object, ...]]:
            return [
                entry
                for name in addresses.get(host, [host])
                for entry in really(name, *rest, **options)
            ]

        monkeypatch.setattr(web.socket, "getaddrinfo", resolved)
        inside = web.is_inside
        monkeypatch.setattr(
            web, "is_inside", lambda address: inside(address) and address != "127.0.0.1"
        )
        port = server.rpartition(":")[2]
        answers["/a.svs"] = status(302, Location=f"http://{inner}:{port}/b.svs")
        answers["/b.svs"] = lambda handler: asked.append(handler.path) or gives()(handler)
        with pytest.raises(
            SlideError,
            match=(
                r"a.svs: its server redirects into this house \(.* is a loopback, link-local or"
                r" private address\)"
            ),
        ):
            version_of(f"http://outside.test:{port}/a.svs")
        answers["/a.svs"] = status(302, Location=f"http://outside.test:{port}/hop.svs")
        answers["/hop.svs"] = status(302, Location=f"http://{inner}:{port}/b.svs")
        with pytest.raises(SlideError, match="its server redirects into this house"):
            version_of(f"http://outside.test:{port}/a.svs")
        assert asked == []

    def test_a_circle_ends_soon(self, server: str, answers: Answers) -> None:
        asked: list[str] = []
        circle = status(302, Location="/a.svs")
        answers["/a.svs"] = lambda handler: asked.append(handler.path) or circle(handler)
        assert "redirects more than 5 times" in str(refused(f"{server}/a.svs"))
        assert len(asked) == 6

    def test_inside_they_may_stay_inside(self, server: str, answers: Answers) -> None:
        answers["/a.svs"] = status(307, Location=f"{server}/b.svs")
        answers["/b.svs"] = gives()
        assert version_of(f"{server}/a.svs").size == len(SLIDE)


class TestTls:
    @pytest.fixture
    def secure(self, answers: Answers, server: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        """An https server, and the file of its certificate, which nobody knows."""
        certificate = make_certificate(tmp_path / "certificate.pem")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers[self.path](self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            running.socket = context.wrap_socket(running.socket, server_side=True)
            running.daemon_threads = True
            threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
            yield f"https://localhost:{running.server_port}", certificate
            running.shutdown()

    def test_a_certificate_that_nobody_knows_is_named(
        self, secure: tuple[str, Path], answers: Answers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address, certificate = secure
        answers["/a.svs"] = gives()
        error = refused(f"{address}/a.svs")
        assert type(error) is MachineError
        assert (
            "a.svs: its server's certificate is not valid here (self-signed certificate);"
            " have it mended" in str(error)
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with fetched(f"{address}/a.svs") as path:
            assert path.read_bytes() == SLIDE
        with pytest.raises(
            MachineError, match=r"its server's certificate is not valid here .*mismatch"
        ):
            version_of(f"{address.replace('localhost', '127.0.0.1')}/a.svs")
        answers["/a.svs"] = status(302, Location=address.replace("https", "http"))
        with pytest.raises(
            SlideError, match="redirects from https to http, which hnm does not follow"
        ):
            version_of(f"{address}/a.svs")

    def test_a_server_without_tls(self, server: str) -> None:
        error = refused(server.replace("http", "https") + "/a.svs")
        assert isinstance(error, StorageError) and "a.svs cannot be fetched: TLS fails" in str(
            error
        )


def make_certificate(path: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
    )
    builder = builder.not_valid_before(today - timedelta(days=1)).not_valid_after(
        today + timedelta(days=1)
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
    )
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
