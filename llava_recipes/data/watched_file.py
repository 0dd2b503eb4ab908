"""A file whose reader may not compute forever over it."""

from __future__ import annotations

import time
from typing import BinaryIO, Final

MAX_DECODE_S: Final = 5.0
"""Processor time that decoding an image may take; the largest one there can be takes about one second."""


class TooSlow(Exception):
    """A decoder that has had its time."""


class WatchedFile:
    """What Pillow needs of a file; each read asks how long the decoder has computed since it was opened.

    A decoder of Pillow takes the file in pieces, so that one which a small file keeps busy (a JPEG of
    thousands of passes, a PNG of millions of chunks) ends at its next piece. Processor time of this thread is
    counted, since a busy machine makes no image worse.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ends_s = time.thread_time() + MAX_DECODE_S
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        # libtiff reads a file on disk by itself, instead of taking all of it into memory.
        self.fileno = file.fileno

    def read(self, size: int = -1) -> bytes:
        if time.thread_time() > self._ends_s:
            raise TooSlow(f"decoding it takes more than {MAX_DECODE_S:g} s of processor time")
        return self._file.read(size)
