from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llava_recipes.files import (
    MAX_SETTINGS_BYTES,
    NotOrdinary,
    expanded,
    kind_of_target,
    odd_kind,
    open_ordinary,
    read_settings,
    real_path,
    system_folder,
    write_text,
)


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, str]:
    """Paths to what is no ordinary file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "status").symlink_to("/proc/self/status")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(tmp_path / "socket"))
    return {
        "a named pipe": str(tmp_path / "pipe"),
        "a named pipe, through a link": str(tmp_path / "link"),
        "a socket": str(tmp_path / "socket"),
        "a device": "/dev/zero",
        "a device, with dots": f"{tmp_path}/../../../../../../../../../dev/zero",
        "a device, with links of the system": "/proc/self/root/dev/null",
        "a file of the system in /proc": "/proc/self/environ",
        "a file of the system in /proc, through a link": str(tmp_path / "status"),
        "a file of the system in /sys": next(
            str(file) for file in Path("/sys/kernel").iterdir() if file.is_file()
        ),
    }


def test_only_ordinary_files_are_opened(odd: dict[str, str]) -> None:
    for kind, path in odd.items():
        with pytest.raises(NotOrdinary) as caught:
            open_ordinary(path)
        assert caught.value.kind == kind.partition(",")[0]
        assert caught.value.strerror == f"{caught.value.kind}, not an ordinary file"
        assert odd_kind(path) == kind_of_target(Path(path)) == caught.value.kind


def test_ordinary_files_are_opened_by_every_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    (tmp_path / "link").symlink_to(file)
    with file.open("rb") as opened:
        for path in (file, tmp_path / "link", f"/proc/self/root{file}", f"/dev/fd/{opened.fileno()}"):
            assert odd_kind(path) is None
            with open_ordinary(path) as again:
                assert again.read() == b"content"


def test_memory_is_an_ordinary_place(tmp_path: Path) -> None:
    assert system_folder("/dev/shm/file") is None
    assert system_folder(tmp_path) is None
    assert system_folder("/dev/shm/../null") == "/dev"
    assert system_folder("/procedure") is None


@pytest.mark.parametrize(
    "error", [FileNotFoundError, IsADirectoryError, NotADirectoryError, OSError, ValueError]
)
def test_other_faults_are_those_of_open(error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    paths = {
        FileNotFoundError: tmp_path / "absent",
        IsADirectoryError: tmp_path,
        NotADirectoryError: tmp_path / "file" / "inside",
        OSError: tmp_path / "loop",
        ValueError: tmp_path / "nul\0",
    }
    assert odd_kind(paths[error]) is None
    with pytest.raises(error):
        open_ordinary(paths[error])


def test_nothing_is_written_in_the_place_of_a_device_or_a_pipe(odd: dict[str, str], tmp_path: Path) -> None:
    for path in (*odd.values(), "/dev/new", "/proc/new"):
        with pytest.raises(NotOrdinary):
            write_text(Path(path), "text")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_the_home_of_nobody_and_links_in_a_circle_are_paths_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/run") == tmp_path / "run"
    assert expanded("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")
    (tmp_path / "circle").symlink_to("circle")
    assert real_path(tmp_path / "circle").name == "circle"
    assert real_path("zero\0byte") == Path("zero\0byte")
    (tmp_path / "link").symlink_to("file")
    assert real_path(tmp_path / "link") == Path(os.path.realpath(tmp_path)) / "file"


def test_settings_are_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("é", "utf-8")
    assert read_settings(tmp_path / "config.json") == "é"
    os.truncate(tmp_path / "config.json", MAX_SETTINGS_BYTES + 1)
    with pytest.raises(OSError, match="larger than 67,108,864 bytes"):
        read_settings(tmp_path / "config.json")
