"""`llava-recipe chat RUN`: ask a model about images, once or in a conversation."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_decoding, add_opening, add_run, decoding_of, quiet_libraries
from llava_recipes.screen import Spoken, cell, console, is_terminal, say, say_lines

if TYPE_CHECKING:
    from llava_recipes.use.chat import Chat

EPILOG = """\
With PROMPT one answer is printed. Without it a conversation starts; where standard input isn't a terminal, \
each of its lines is a question. In a conversation:

  /image FILE   add an image to the next question
  /reset        forget the conversation and its images
  /quit         end the conversation, as Ctrl-D does; Ctrl-C stops an answer

<image> in a question marks the place of its image; by default images come first. A run with the template \
`plain` takes no questions: it captions the image."""

HELP = "/image FILE · /reset · /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_run(parser)
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="question to ask (default: start a conversation)"
    )
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="image to show; may be repeated"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt (default: the run's)")
    add_decoding(parser, max_new_tokens=512)
    add_opening(parser)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from llava_recipes.use.chat import Chat
    from llava_recipes.use.opened import open_to_ask

    decoding = decoding_of(arguments)
    quiet_libraries()
    opened = open_to_ask(
        arguments.run,
        precision=arguments.dtype,
        device=arguments.device,
        base=arguments.base,
        system_prompt=arguments.system,
    )
    torch.manual_seed(arguments.seed)
    conversation = Chat(opened.answerer, decoding, say=_note)
    for file in arguments.image:
        conversation.show(file)
    if arguments.prompt is not None or (conversation.is_plain and arguments.image):
        _answer(conversation, arguments.prompt or "")
        return 0
    _converse(conversation, f"{arguments.run} · {opened.run.data.wording} · {HELP}")
    return 0


def _converse(conversation: Chat, greeting: str) -> None:
    """Read questions and answer them until the input ends."""
    from llava_recipes.errors import RecipeError
    from llava_recipes.render import render_problems

    at_terminal = is_terminal(sys.stdin)
    if at_terminal:
        say(greeting, to_stderr=True)
    for line in _lines(at_terminal):
        try:
            if not _obey(conversation, line):
                return
        except RecipeError as error:
            # A person can try again; a pipe cannot.
            if not at_terminal:
                raise
            say_lines(render_problems(error.problems), to_stderr=True)
        except KeyboardInterrupt:
            # SIGTERM, which is ignored once it came, ends the conversation.
            if not at_terminal or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                raise
            say("", "(stopped)", to_stderr=True)


def _obey(conversation: Chat, line: str) -> bool:
    """Answer a question or obey a command; false when the line ends the conversation."""
    from llava_recipes.errors import RecipeError

    command, _, rest = line.strip().partition(" ")
    if not command.startswith("/"):
        if command or (conversation.is_plain and conversation.num_waiting):
            _answer(conversation, line)
    elif command == "/quit":
        return False
    elif command == "/reset":
        conversation.reset()
    elif command == "/image" and rest.strip():
        conversation.show(rest.strip())
        if conversation.is_plain:
            _answer(conversation, "")
    else:
        raise RecipeError.of(f"unknown command {line.strip()!r}", code="unknown-chat-command", hint=HELP)
    return True


def _lines(at_terminal: bool) -> Iterator[str]:
    if not at_terminal:
        yield from (line.rstrip("\r\n") for line in sys.stdin or ())
        return
    with contextlib.suppress(ImportError):
        # Importing it gives `input` editing and history.
        import readline  # noqa: F401
    prompt = cell("you> ", style="bold cyan")
    screen = console()
    while True:
        try:
            yield screen.input(prompt)
        except EOFError:
            say(to_stderr=True)
            return


def _answer(conversation: Chat, text: str) -> None:
    """Print an answer while it is generated."""
    spoken = Spoken()
    conversation.ask(text, listen=spoken.add)
    spoken.finish()


def _note(text: str) -> None:
    say(f"note: {text}", to_stderr=True)
