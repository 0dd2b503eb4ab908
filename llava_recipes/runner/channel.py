"""How training processes and the command that started them talk: lines of JSON over a loopback connection.

A process names the token from its environment first. It receives its request, then perhaps one to stop, and
sends what it has to report. Nothing of it lies on a disk. When the connection closes, the other end is gone.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from llava_recipes.errors import RecipeError

ADDRESS, TOKEN = "LLAVA_RECIPES_CHANNEL", "LLAVA_RECIPES_CHANNEL_TOKEN"
Message = dict[str, Any]

_MAX_LINE_BYTES = 2**26
_HELLO_S = 10.0


@dataclass
class Peer:
    """A training process, or torchrun, whose rank is None."""

    connection: socket.socket
    rank: int | None
    pid: int
    heard_s: float
    is_saving: bool = False
    status: Message = field(default_factory=dict)
    """What its watch told last."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, message: Message) -> None:
        """Send a message. A peer that is gone is noticed where its messages are read."""
        with self.lock, suppress(OSError):
            self.connection.sendall(_line(message))


class Channel:
    """The command's end. Threads read; `messages` has what each rank sent, in order."""

    def __init__(self, request: Message) -> None:
        self._request = request
        self._token = secrets.token_hex(32)
        self._server = _open_server()
        self._lock = threading.Lock()
        self._peers: list[Peer] = []
        self._stop: Message | None = None
        self.messages: list[tuple[int, Message]] = []
        self.num_seen = 0
        self._is_ending = False
        threading.Thread(target=self._accept, name="channel", daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds this end."""
        return {ADDRESS: str(self._server.getsockname()[1]), TOKEN: self._token}

    def peers(self) -> list[Peer]:
        """The processes that are connected now."""
        with self._lock:
            return list(self._peers)

    def ranks(self) -> list[Peer]:
        """The training processes that are connected now."""
        return [peer for peer in self.peers() if peer.rank is not None]

    @property
    def is_stopping(self) -> bool:
        """Whether the processes are asked to stop."""
        return self._stop is not None

    def stop(self, reason: str) -> None:
        """Ask every process to save and stop, also those that connect later; once."""
        with self._lock:
            if self._stop is not None:
                return
            self._stop = {"kind": "stop", "reason": reason}
            peers = list(self._peers)
        for peer in peers:
            peer.tell(self._stop)

    def of_kind(self, kind: str) -> list[tuple[int, Message]]:
        """What was received of a kind, by rank."""
        with self._lock:
            found = [(rank, message) for rank, message in self.messages if message["kind"] == kind]
        return sorted(found, key=lambda pair: pair[0])

    def note(self, message: Message) -> None:
        """Add a message of this end's own to those received."""
        with self._lock:
            self.messages.append((-1, message))

    def close(self) -> None:
        with suppress(OSError):
            # Closing alone would leave the thread in `accept`.
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for peer in self.peers():
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="channel", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            peer = self._greet(connection, lines)
            if peer is None:
                return
            try:
                self._listen(peer, lines)
            finally:
                with self._lock:
                    self._peers.remove(peer)

    def _listen(self, peer: Peer, lines: BinaryIO) -> None:
        while True:
            try:
                message = _receive(lines)
            except OSError:
                return
            except ValueError:
                # Closing the connection would tell the process that this command is gone.
                continue
            if message is None:
                return
            self._note(peer, message)

    def _greet(self, connection: socket.socket, lines: BinaryIO) -> Peer | None:
        connection.settimeout(_HELLO_S)
        try:
            hello = _receive(lines, max_bytes=1024)
            if hello is None or not hmac.compare_digest(
                str(hello.get("token")).encode(), self._token.encode()
            ):
                return None
            rank, pid = hello["rank"], int(hello["pid"])
            connection.settimeout(None)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        peer = Peer(connection, None if rank is None else int(rank), pid, time.monotonic())
        peer.tell({"kind": "request", "request": self._request})
        with self._lock:
            self._peers.append(peer)
            self.num_seen += peer.rank is not None
            stop = self._stop
        if stop is not None:
            peer.tell(stop)
        return peer

    def _note(self, peer: Peer, message: Message) -> None:
        peer.heard_s = time.monotonic()
        if message["kind"] == "saving":
            peer.is_saving = bool(message.get("now"))
        elif message["kind"] == "watch":
            peer.status = message
        elif message["kind"] == "ending":
            self._is_ending = True
        elif message["kind"] == "asked" and self._is_ending:
            # By torchrun, since a process has failed: no request of anybody.
            return
        elif message["kind"] != "alive":
            with self._lock:
                self.messages.append((-1 if peer.rank is None else peer.rank, message))


class ChannelLost(Exception):
    """The command that started this process cannot be reached."""


class Line:
    """A process's end. `on_stop` is called with the reason, `on_lost` when the command is gone."""

    def __init__(self, environ: Mapping[str, str], *, rank: int | None) -> None:
        try:
            self._connection = socket.create_connection(("127.0.0.1", int(environ[ADDRESS])), timeout=60)
            self._connection.settimeout(None)
            self._lines = self._connection.makefile("rb")
            self._lock = threading.Lock()
            self._send({"token": environ[TOKEN], "rank": rank, "pid": os.getpid()})
            first = _receive(self._lines)
        except (OSError, ValueError, LookupError) as error:
            raise ChannelLost(str(error)) from error
        if first is None:
            raise ChannelLost("the connection closed at once")
        self.request: Message = first.get("request", {})

    def listen(self, *, on_stop: Callable[[str], None], on_lost: Callable[[], None]) -> None:
        """Read what the command sends, in a thread."""

        def read() -> None:
            with suppress(OSError, ValueError):
                while (message := _receive(self._lines)) is not None:
                    if message["kind"] == "stop":
                        on_stop(str(message.get("reason")))
            on_lost()

        threading.Thread(target=read, name="channel", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message. A command that is gone is noticed by the thread that listens."""
        with suppress(OSError):
            self._send(message)

    def _send(self, message: Message) -> None:
        with self._lock:
            self._connection.sendall(_line(message))

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _open_server() -> socket.socket:
    """A server that processes of this machine can reach. Raises RecipeError where none can."""
    opened = ExitStack()
    try:
        with opened:
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
            socket.create_connection(server.getsockname(), timeout=_HELLO_S).close()
            opened.pop_all()
    except OSError as error:
        raise RecipeError.of(
            "processes of this machine cannot reach each other",
            code="no-loopback",
            found=f"127.0.0.1: {error.strerror or error}",
            hint="bring the loopback interface up: `ip link set lo up`",
        ) from None
    return server


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _receive(lines: BinaryIO, *, max_bytes: int = _MAX_LINE_BYTES) -> Message | None:
    """The next message, or None at the end. Raises ValueError for what is none."""
    line = lines.readline(max_bytes)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise ValueError("a line without an end")
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict) or not isinstance(message.setdefault("kind", ""), str):
        raise ValueError("not a message")
    return message
