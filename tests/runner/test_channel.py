"""The line between a run and its training processes: whom it believes, and what it survives."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.runner.channel import ADDRESS, TOKEN, Channel, ChannelLost, Line


@pytest.fixture
def channel() -> Iterator[Channel]:
    with closing(Channel({"output_dir": "x"})) as opened:
        yield opened
        opened.close()
        wait_until(lambda: not any(thread.name == "channel" for thread in threading.enumerate()))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_gets_its_request_reports_and_hears_of_the_stop(channel: Channel) -> None:
    stopped, lost = threading.Event(), threading.Event()
    line = Line(channel.environment, rank=1)
    assert line.request == {"output_dir": "x"}
    line.listen(on_stop=lambda reason: stopped.set() if reason == "SIGTERM" else None, on_lost=lost.set)
    line.tell({"kind": "result", "result": "é" * 70_000})
    channel.stop("SIGTERM")
    channel.stop("SIGINT")
    assert stopped.wait(30)
    wait_until(lambda: bool(channel.of_kind("result")))
    assert channel.of_kind("result") == [(1, {"kind": "result", "result": "é" * 70_000})]
    late = Line(channel.environment, rank=0)
    stopped.clear()
    late.listen(on_stop=lambda reason: stopped.set(), on_lost=lambda: None)
    assert stopped.wait(30)
    channel.close()
    assert lost.wait(30)
    line.close()
    late.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"token": "no", "rank": 0, "pid": 1}\n',
        b"[" * 900 + b"\n",
        b"x" * 5000,
    ],
)
def test_strangers_are_sent_away(channel: Channel, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(channel.environment[ADDRESS]))) as stranger:
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    assert channel.peers() == []


def test_garbage_on_the_line_is_passed_over(channel: Channel) -> None:
    hello = {"token": channel.environment[TOKEN], "rank": 0, "pid": 1}
    with socket.create_connection(("127.0.0.1", int(channel.environment[ADDRESS]))) as process:
        process.sendall(json.dumps(hello).encode() + b'\n\xff\xfe\n[]\n{"kind": 1}\n' + b"[" * 99_999 + b"\n")
        process.sendall(b'{"kind": "bug", "traceback": "t"}\n')
        wait_until(lambda: bool(channel.of_kind("bug")))
    assert [kind for _, message in channel.messages if (kind := message["kind"])] == ["bug"]


def test_a_command_that_is_gone_is_said(channel: Channel) -> None:
    environment = channel.environment
    channel.close()
    with pytest.raises(ChannelLost):
        Line(environment, rank=0)


def test_a_machine_without_loopback_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(RecipeError) as raised:
        Channel({})
    assert raised.value.problems[0].code == "no-loopback"
