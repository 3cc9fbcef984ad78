"""Servers that hang: each takes a connection, or not even that, and then says nothing more."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_WELCOME = (
    b"R"
    + struct.pack("!ii", 8, 0)
    + b"S"
    + struct.pack("!i", 25)
    + b"client_encoding\0UTF8\0"
    + b"Z"
    + struct.pack("!i", 5)
    + b"I"
)
"""What PostgreSQL says to a user whom it trusts: welcome, the encoding, ready."""


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes each connection and never answers."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            try:
                while True:
                    stack.enter_context(listening.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full, and the system drops
    what comes.
    """
    with ExitStack() as stack, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def silent_after_login() -> Iterator[int]:
    """The port of a PostgreSQL that takes each user and answers no statement."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            try:
                while True:
                    connection = stack.enter_context(listening.accept()[0])
                    while connection.recv(4096)[4:8] == struct.pack(
                        "!i", 80877103
                    ):  # whether it can encrypt
                        connection.sendall(b"N")
                    connection.sendall(_WELCOME)
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
