"""A program that is asked line by line: it writes a prompt, waits for a line, and answers it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.engines.compare import Refused
from benchmarks.engines.process import last_words

_TO_END_S = 30.0


class Dialogue:
    """What is said to a program that runs, and what it writes until its next prompt."""

    def __init__(self, child: subprocess.Popen[bytes], name: str, *, prompt: str, errors: Path) -> None:
        assert child.stdin is not None and child.stdout is not None
        self._child, self._to, self._from = child, child.stdin, child.stdout.fileno()
        self._name, self._prompt, self._errors = name, prompt.encode(), errors

    def say(self, line: str) -> str:
        """Send a line; what the program writes until it waits for the next one.

        Raises Refused with the program's last words where it ends instead.
        """
        try:
            self._to.write(line.encode() + b"\n")
            self._to.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.listen()

    def listen(self) -> str:
        """What the program writes until it waits for a line."""
        written = b""
        while not written.endswith(self._prompt):
            more = os.read(self._from, 1 << 16)
            if not more:
                raise self._ended()
            written += more
        return written.removesuffix(self._prompt).decode(errors="replace")

    def _ended(self) -> Refused:
        code = self._child.wait()
        said = last_words(self._errors.read_text("utf-8", errors="replace"))
        return Refused(f"{self._name} ended with {code}: {said}")


@contextmanager
def dialogue(argv: Sequence[str | Path], *, prompt: str, env: Mapping[str, str]) -> Iterator[Dialogue]:
    """A program for the time of a block, in a session of its own so that it leaves the terminal alone."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        with errors.open("wb") as file:
            try:
                child = subprocess.Popen(
                    [str(word) for word in argv],
                    env={**os.environ, **env},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    start_new_session=True,
                )
            except OSError as error:
                raise Refused(f"{argv[0]} cannot be started: {error.strerror}") from error
        with child:
            try:
                yield Dialogue(child, str(argv[0]), prompt=prompt, errors=errors)
                # The end of its input ends the program.
                child.communicate(timeout=_TO_END_S)
            except BaseException:
                child.kill()
                raise
