"""Write files so that a reader sees the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, flush it to disk and rename it there.

    When the block raises, the temporary file goes and what stood at `path` stays.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        give_usual_mode(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def give_usual_mode(path: Path) -> None:
    """Give a file or a folder with all that is in it the modes that the umask leaves.

    Temporary files are made for their owner alone, as safetensors makes all of its files. Folders keep what
    they have from the one above them, as a shared folder's setgid bit.
    """
    umask = _umask()
    for each in (path, *path.rglob("*")):
        if each.is_symlink():
            continue
        if each.is_dir():
            each.chmod((each.stat().st_mode & _SPECIAL) | (0o777 & ~umask))
        else:
            each.chmod(0o666 & ~umask)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
