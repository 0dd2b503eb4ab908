"""Ways to damage a file: of its bytes, of the values of a JSON file, of what stands in its place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]
DEPTH = 100_000


@dataclass(frozen=True)
class Mutation:
    """One way to damage one file."""

    name: str
    damage: Damage
    is_of_a_value: bool = False
    """The file is still well-formed JSON, with another value in one place."""


def mutations(file: Path, *, seed: int, keys: int) -> list[Mutation]:
    """Damages of `file` in an order drawn from `seed`: of its place, its bytes, up to `keys` JSON values."""
    chosen = random.Random(f"{seed} {file.name}")
    data = file.read_bytes()
    found = [*_of_place(), *_of_bytes(data, chosen), *_wholes(data)]
    parsed = _parsed(data)
    if parsed is not None:
        of_values = list(_of_values(parsed))
        found += chosen.sample(of_values, min(keys, len(of_values)))
    chosen.shuffle(found)
    return found


def _parsed(data: bytes) -> Any:
    """The value of a JSON file that has places; None for another file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) and len(data) < 2_000_000 else None


def _writes(data: bytes) -> Damage:
    def write(file: Path) -> None:
        file.write_bytes(data)

    return write


def _of_place() -> Iterator[Mutation]:
    def folder(file: Path) -> None:
        file.unlink()
        file.mkdir()

    def dangling(file: Path) -> None:
        file.unlink()
        file.symlink_to("nowhere")

    def circle(file: Path) -> None:
        file.unlink()
        file.symlink_to(file.name)

    yield Mutation("missing", lambda file: file.unlink())
    yield Mutation("a folder in its place", folder)
    yield Mutation("a dangling link in its place", dangling)
    yield Mutation("a link to itself in its place", circle)
    if os.geteuid() != 0:
        yield Mutation("unreadable", lambda file: file.chmod(0))


def _of_bytes(data: bytes, chosen: random.Random) -> Iterator[Mutation]:
    size = len(data)
    yield Mutation("empty", _writes(b""))
    for share in (0.01, 0.3, 0.5, 0.9):
        cut = int(size * share)
        yield Mutation(f"cut at {cut}", _writes(data[:cut]))
    yield Mutation("cut by one", _writes(data[:-1]))
    places = sorted({0, 1, 7, *(chosen.randrange(size) for _ in range(8))}) if size else []
    for place in (place for place in places if place < size):
        flipped = data[:place] + bytes([data[place] ^ (1 << chosen.randrange(8))]) + data[place + 1 :]
        yield Mutation(f"byte {place} flipped", _writes(flipped))
    start = chosen.randrange(max(1, size))
    for name, byte in (("0xFF", b"\xff"), ("NUL", b"\0")):
        yield Mutation(f"{name} at {start}", _writes(data[:start] + byte * 4 + data[start + 4 :]))
        yield Mutation(f"all {name}", _writes(byte * min(size, 4096)))
    yield Mutation("BOM", _writes(b"\xef\xbb\xbf" + data))
    yield Mutation("UTF-16", _writes(b"\xff\xfe" + data.decode("utf-8", "replace").encode("utf-16-le")))
    yield Mutation("noise", _writes(chosen.randbytes(512)))
    yield Mutation("appended", _writes(data + b"}\n]garbage"))


def _wholes(data: bytes) -> Iterator[Mutation]:
    for text in ("[]", "null", '"x"', "{}", "1", "true", "[null]", "[[]]", '{"x": 1}', "NaN", "1e999"):
        yield Mutation(f"whole file {text}", _writes(text.encode()))
    yield Mutation("deep lists", _writes(b"[" * DEPTH + b"]" * DEPTH))
    yield Mutation("deep mappings", _writes(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH))
    yield Mutation("a number of many digits", _writes(b"1" * 5000))
    yield Mutation("an unpaired surrogate", _writes(b'{"\\ud800": "\\ud800"}'))


_VALUES: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("true", True),
    ("a string", "x"),
    ("an empty string", ""),
    ("a number", 7),
    ("0", 0),
    ("-1", -1),
    ("a huge number", 10**30),
    ("a huge index", 2**31),
    ("1.5", 1.5),
    ("an empty list", []),
    ("a list", [1, "x", None]),
    ("a list in a list", [[["x"]]]),
    ("an empty mapping", {}),
    ("a mapping", {"x": {"y": [1]}}),
    ("NaN", float("nan")),
    ("Infinity", float("inf")),
    ("a surrogate", "\ud800"),
    ("NUL", "a\0b"),
    ("a long string", "x" * 5000),
)


def _of_values(root: Any) -> Iterator[Mutation]:
    for place in _places(root, ()):
        spelled = ".".join(map(str, place))
        for name, value in _VALUES:
            yield Mutation(
                f"{spelled}: {name}", _writes(_dump(_with(root, place, value))), is_of_a_value=True
            )
        yield Mutation(f"{spelled}: removed", _writes(_dump(_without(root, place))), is_of_a_value=True)
        yield Mutation(f"{spelled}: twice", _writes(_twice(root, place)), is_of_a_value=True)


def _places(value: Any, before: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Where values stand; of long lists and mappings the first and the last few."""
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    if len(entries) > 60:
        entries = [*entries[:3], *entries[-2:]]
    for key, inner in entries:
        yield (*before, key)
        yield from _places(inner, (*before, key))


def _with(root: Any, place: tuple[str | int, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(root) if isinstance(root, dict) else list(root)
    copy[place[0]] = _with(root[place[0]], place[1:], value)  # type: ignore[index]
    return copy


def _without(root: Any, place: tuple[str | int, ...]) -> Any:
    copy = dict(root) if isinstance(root, dict) else list(root)
    if len(place) == 1:
        del copy[place[0]]  # type: ignore[arg-type]
    else:
        copy[place[0]] = _without(root[place[0]], place[1:])  # type: ignore[index]
    return copy


def _twice(root: Any, place: tuple[str | int, ...]) -> bytes:
    """The file with one key written twice, a string the second time."""
    inner = root
    for key in place[:-1]:
        inner = inner[key]
    if isinstance(inner, list):
        return _dump(_with(root, place[:-1], [*inner, inner[int(place[-1])]]))
    mark = "\N{SNOWMAN}twice"
    text = _dump(_with(root, place[:-1], {**inner, mark: "x"})).decode("utf-8", "surrogatepass")
    return text.replace(json.dumps(mark), json.dumps(place[-1])).encode("utf-8", "surrogatepass")


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def remove(path: Path) -> None:
    """Take away whatever stands at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
