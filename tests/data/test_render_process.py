"""Chat templates that would never end, or take all memory, and the process in which they run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset
from transformers.utils.chat_template_utils import render_jinja_template

from llava_recipes.data import chat_template
from llava_recipes.data.chat_template import ChatTemplate, Rendered, TemplateLimit, render
from llava_recipes.data.prompts import Prompts
from llava_recipes.errors import RecipeError
from llava_recipes.templates import Turn
from tests.chat_tokenizers import CHAT_TEMPLATES, open_tokenizer, save_tokenizer
from tests.data.test_chat_template import GENERATION, THINKING
from tests.processes import TIMEOUT_S

TIME, MEMORY, TEXT = "processor time", "MiB of memory", "characters"
MESSAGES = [{"role": "user", "content": "hi \ud800 é"}, {"role": "assistant", "content": "it's <b>me</b>\n"}]

BOMBS = {
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x", TIME),
    "macros": ("{% macro f(n) %}{{ f(n-1) + f(n-1) if n }}{% endmacro %}{{ f(60) }}", TIME),
    "powers": (
        "{% set n = namespace(a=3) %}{% for i in range(99) %}{% set n.a = n.a ** 3 %}{% endfor %}",
        TIME,
    ),
    "sorting": ("{% for i in range(99999) %}{% set x = range(99999)|sort|list %}{% endfor %}", TIME),
    "lipsum": ("{{ lipsum(10**6) }}", TIME),
    "repeated": ("{{ 'a' * 2**40 }}", MEMORY),
    "doubled": (
        "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
        MEMORY,
    ),
    "indent": ("{{ 'a'|indent(10**10, true) }}", MEMORY),
    "width": ("{{ '%999999999d' % 1 }}", MEMORY),
    "format": ("{{ '{:>9999999999}'.format(1) }}", MEMORY),
    "center": ("{{ 'a'|center(10**9) }}", MEMORY),
    "replaced": ("{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}", MEMORY),
    "listed": ("{{ [0] * 10**10 }}", MEMORY),
    "filled": ("{{ range(9)|batch(10**9, 0)|list|length }}", MEMORY),
    "text": ("{% for i in range(99999) %}{{ 'a' * 30 }}{% endfor %}", TEXT),
    "marks": (
        "{% for i in range(1200) %}{% generation %}{{ 'a' * 999 }}{% endgeneration %}{% endfor %}",
        TEXT,
    ),
}


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[Any]:
    """A process with lower limits, for this file alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "MAX_RENDER_S", 0.5)
        patch.setattr(chat_template, "MAX_RENDER_BYTES", 2**27)
        renderer = chat_template._Renderer()
        patch.setattr(chat_template, "_RENDERER", renderer)
        yield renderer
        renderer.end()


def rendered(
    text: str, *, messages: Any = MESSAGES, open_answer: bool = False, marks: bool = False
) -> Rendered:
    names = {"bos_token": "<s>"}
    return render(text, messages, names=names, add_generation_prompt=open_answer, mark_answers=marks)


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_every_bomb_is_ended_and_says_by_what(name: str) -> None:
    text, limit = BOMBS[name]
    with pytest.raises(TemplateLimit, match=limit):
        rendered(text, marks=name == "marks")
    assert rendered("{{ messages[0].content }}").text == MESSAGES[0]["content"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "[" * 100_000 + " }}", "recursion"),
        ("{{ raise_exception('x' * 10**6) }}", "^x{2000}$"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_refuses_or_may_not_do(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        rendered(text)
    assert not isinstance(caught.value, TemplateLimit)


@pytest.mark.parametrize("open_answer", [False, True])
@pytest.mark.parametrize("text", [*CHAT_TEMPLATES.values(), THINKING, GENERATION])
def test_the_text_is_that_of_transformers(text: str, open_answer: bool) -> None:
    marks = text is GENERATION
    (expected,), spans = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=text,
        return_assistant_tokens_mask=marks,
        add_generation_prompt=open_answer,
        bos_token="<s>",
    )
    found = rendered(text, open_answer=open_answer, marks=marks)
    assert found.text == expected
    assert list(found.spans) == (spans[0] if spans else [])


def test_a_long_conversation_is_no_bomb() -> None:
    messages = [{"role": "user", "content": "wörd " * 10}] * 5000
    text = "{% for message in messages %}{{ message.content + message.content }}{% endfor %}"
    assert len(rendered(text, messages=messages).text) == 5000 * 50 * 2
    assert (
        len(rendered("{{ messages[0].content }}", messages=[{"content": "x" * 5_000_000}]).text) == 5_000_000
    )


def test_it_sees_no_secrets_and_no_file_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    assert rendered("x").text == "x"
    process = chat_template._RENDERER._process
    assert process is not None
    assert b"hidden" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_it_ends_with_the_process_that_asks(tmp_path: Path) -> None:
    code = (
        "import os, signal; from llava_recipes.data import chat_template as r; "
        "r.render('x', [], names={}, add_generation_prompt=False); "
        "print(r._RENDERER._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == -signal.SIGKILL
    file = Path(f"/proc/{int(done.stdout)}/cmdline")
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        if not file.exists() or b"render_process" not in file.read_bytes():
            return
        time.sleep(0.02)
    raise AssertionError("the process is still there")


def test_a_signal_to_the_terminal_does_not_reach_it(short: Any) -> None:
    rendered("x")
    first = short._process.pid
    assert os.getpgid(first) != os.getpgid(0)
    os.kill(first, signal.SIGINT)
    assert rendered("y").text == "y"
    assert short._process.pid == first
    os.kill(first, signal.SIGKILL)
    with pytest.raises(TemplateLimit):
        rendered("z")
    assert rendered("z").text == "z"


def test_after_an_interrupt_answers_belong_to_their_questions(
    short: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered("x")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat_template, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rendered("first")
    assert rendered("second").text == "second"


def _in_worker(index: int) -> list[Any]:
    return [index, rendered(f"{index}").text, chat_template._RENDERER._process.pid]  # type: ignore[union-attr]


class Asking(Dataset[list[Any]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[Any]:
        return _in_worker(index)


def test_workers_have_processes_of_their_own(short: Any) -> None:
    rendered("x")
    context = multiprocessing.get_context("fork")
    loader: DataLoader[list[Any]] = DataLoader(
        Asking(),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=context,
        collate_fn=lambda each: each,
    )
    found = list(loader)
    assert [[index, text] for index, text, _ in found] == [[index, str(index)] for index in range(8)]
    pids = {pid for *_, pid in found}
    assert len(pids) == 2
    assert short._process.pid not in pids
    assert rendered("y").text == "y"


def tokenizer_with(text: str, folder: Path, *, own_file: bool) -> Any:
    place = save_tokenizer("qwen", folder)
    config = json.loads((place / "tokenizer_config.json").read_text())
    (place / "chat_template.jinja").unlink(missing_ok=True)
    if own_file:
        (place / "chat_template.jinja").write_text(text)
    else:
        config["chat_template"] = text
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return open_tokenizer(place)


@pytest.mark.parametrize("own_file", [True, False])
def test_the_error_names_the_file_and_the_limit(tmp_path: Path, own_file: bool) -> None:
    from tests.data.test_crops import data_plan

    tokenizer = tokenizer_with(BOMBS["loops"][0], tmp_path / "t", own_file=own_file)
    with pytest.raises(RecipeError) as caught:
        Prompts(data_plan(template=None, chat_template="tokenizer"), tokenizer, start_end=False)
    (problem,) = caught.value.problems
    name = "chat_template.jinja" if own_file else "tokenizer_config.json"
    assert problem.message == (
        f"the tokenizer's chat template in {tmp_path / 't' / name} "
        "takes more than 0.5 s of processor time for one conversation"
    )
    assert (problem.code, problem.path) == ("chat-template-limit", ("data", "chat_template"))


def test_a_template_that_has_had_its_time_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be harmless with the first conversations."""
    late = CHAT_TEMPLATES["qwen"] + (
        "{% if 'now' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}"
    )
    template = ChatTemplate(tokenizer_with(late, tmp_path / "t", own_file=True), system_prompt=None)
    turns = [Turn("human", "Q"), Turn("gpt", "A")]
    assert template.spell(turns)
    with pytest.raises(TemplateLimit, match="processor time"):
        template.spell([Turn("human", "now"), turns[1]])
    monkeypatch.setattr(chat_template, "render", None)
    with pytest.raises(TemplateLimit, match="processor time"):
        template.spell(turns)


def test_conversations_of_many_lengths_share_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CHAT_TEMPLATES["qwen"]
    template = ChatTemplate(tokenizer_with(text, tmp_path / "t", own_file=True), system_prompt=None)
    asked: list[str] = []

    def counted(*given: Any, **named: Any) -> Rendered:
        asked.append("once more")
        return render(*given, **named)

    monkeypatch.setattr(chat_template, "render", counted)
    for num_turns in range(2, 42, 2):
        template.spell([Turn("gpt" if place % 2 else "human", "x") for place in range(num_turns)])
    # Of each length the marks and the conversation, and of each answer but the first its prompt.
    assert len(asked) <= 20 * 2 + 20
    with pytest.raises(ValueError, match=r"has 1,002 turns; at most 1,000"):
        template.spell([Turn("gpt" if place % 2 else "human", "x") for place in range(1002)])
