"""Hub ids: the hub's own client against a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.processes import ROOT, run_process

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights again",
    "original/consolidated.00.pth": b"and again",
    "README.md": b"words",
    "tokenizer_of_ours.py": b"code",
}
BIN_FILES = {name: content for name, content in FILES.items() if not name.endswith(".safetensors")}
REPOSITORIES = {"owner/safe": FILES, "owner/bins": BIN_FILES}

CLIENT = """
import json, pathlib, sys
from llava_recipes.model.pretrained import pretrained_folder
from llava_recipes.errors import RecipeError
for source, revision, parts in json.loads(sys.argv[1]):
    try:
        folder = pretrained_folder(source, revision, parts=parts, path=("model",))
        print(json.dumps(sorted(path.name for path in pathlib.Path(folder).rglob("*") if path.is_file())))
    except RecipeError as error:
        print(json.dumps(error.problems[0].message))
"""


def _hash(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name == "owner/gated":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if name == "owner/down":
            return self._send(503, b"", {})
        if name not in REPOSITORIES:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = REPOSITORIES[name]
        if path.startswith("/api/models"):
            if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if rest[:1] == ["tree"]:
                tree = [
                    {"type": "file", "path": file, "size": len(files[file]), "oid": _hash(files[file])}
                    for file in files
                ]
                return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            siblings = [{"rfilename": file} for file in files]
            body = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._send(200, content, {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _ask(requests: list[tuple[str, str | None, list[str]]], endpoint: str, cache: Path) -> list[object]:
    """What a fresh process gets for each request: names of files, or the error's message."""
    done = run_process(
        [sys.executable, "-c", CLIENT, json.dumps(requests)],
        env={
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        },
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_the_needed_files_are_fetched_and_safetensors_win(hub: str, tmp_path: Path) -> None:
    config, weights = ["config"], ["config", "weights"]
    answers = _ask(
        [
            ("owner/safe", None, config),
            ("owner/safe", COMMIT, ["config", "tokenizer", "weights"]),
            ("owner/bins", "main", weights),
        ],
        hub,
        tmp_path,
    )
    assert answers == [
        ["config.json"],
        ["config.json", "model.safetensors", "tokenizer.json"],
        ["config.json", "pytorch_model.bin"],
    ]
    # What is in the cache does without the hub.
    nowhere = "http://127.0.0.1:9"
    sources = ("owner/safe", "owner/bins", "owner/never")
    offline = _ask([(source, None, weights) for source in sources], nowhere, tmp_path)
    assert offline[:2] == answers[1:]
    assert offline[2] == "no such folder, not in the local cache, and the hub cannot be reached"


def test_what_the_hub_refuses_is_said_in_plain_words(hub: str, tmp_path: Path) -> None:
    answers = _ask(
        [
            ("owner/none", None, ["config"]),
            ("owner/safe", "v9", ["config"]),
            ("owner/gated", None, ["config"]),
            ("owner/down", None, ["config"]),
        ],
        hub,
        tmp_path,
    )
    assert answers == [
        "no such folder, and no such repository on the hub",
        "the hub's repository has no revision 'v9'",
        "the hub grants this model to approved accounts only",
        "no such folder, not in the local cache, and the hub cannot be reached",
    ]
