"""For the text of the chat template, llama.cpp computes the ids of the training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.export import refusing
from llava_recipes.export.refusing import USUAL, notes_of, spelling_for
from llava_recipes.export.to_gguf import write_chat_template
from llava_recipes.templates import Turn
from llava_recipes.use.foreign_folders import usual_data
from llava_recipes.use.opened import OpenedRun
from tests.chat_tokenizers import open_tokenizer, save_tokenizer
from tests.export import llama_cpp
from tests.tiny import FIXTURES

QUESTION = "Which  colour has it?"
OWN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def run_of(folder: Path, *, start_end: bool, **data: Any) -> OpenedRun:
    """What is read of a run, with the tokenizer in a folder."""
    tokenizer = open_tokenizer(folder, start_end=start_end)
    tokenizer.chat_template = OWN
    plan = usual_data({"model_type": "llama"}, images={"image_aspect_ratio": "pad"}, vocabulary={})
    run = SimpleNamespace(
        assembled=SimpleNamespace(tokenizer=tokenizer),
        plan=SimpleNamespace(image_tokens=SimpleNamespace(start_end=start_end)),
        data=plan.model_copy(update=data),
    )
    return cast(OpenedRun, run)


def ids_in_training(run: OpenedRun) -> list[int]:
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=run.plan.image_tokens.start_end)
    ids = prompts.encode_prompt([Turn("human", f"<image>\n{QUESTION}")], has_image=True)
    return [id for id in ids if id != IMAGE_ID]


def ids_in_llama_cpp(run: OpenedRun, folder: Path) -> list[int]:
    run.assembled.tokenizer.save_pretrained(folder)
    write_chat_template(run, folder)
    text = llama_cpp.chat_template(folder)
    assert text is not None
    asked = [{"role": "user", "content": llama_cpp.MARK + QUESTION}]
    return llama_cpp.prompt_ids(folder, llama_cpp.render(text, asked, open_answer=True))


@pytest.mark.parametrize("start_end", [False, True])
@pytest.mark.parametrize("template", ["v1", "llama_2", "mistral_instruct", "v0", "plain", None])
@pytest.mark.parametrize("tokenizer", ["tiny_vicuna", "tiny_vicuna_legacy"])
def test_llama_cpp_gives_the_ids_of_the_training(
    tokenizer: str, template: str | None, start_end: bool, tmp_path: Path
) -> None:
    data = {"template": template, "tokens_in_plain": template == "plain" and start_end}
    run = run_of(FIXTURES / tokenizer, start_end=start_end, **data)
    ours = ids_in_training(run)
    assert ids_in_llama_cpp(run, tmp_path) == ours
    assert len(ours) > 2 or not start_end
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # Where a space is wanted, llama.cpp is left to put it there.
    assert tokenizer == "tiny_vicuna" or settings.get("add_prefix_space") is not False


def test_a_second_question_has_the_ids_of_the_training_too(tmp_path: Path) -> None:
    run = run_of(FIXTURES / "tiny_vicuna", start_end=True, template="v1")
    ids_in_llama_cpp(run, tmp_path)
    said = [f"<image>\n{QUESTION}", "A blue one.", "And the other?"]
    turns = [Turn("gpt" if at % 2 else "human", text) for at, text in enumerate(said)]
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=True)
    ours = [id for id in prompts.encode_prompt(turns, has_image=True) if id != IMAGE_ID]
    messages = [
        {"role": ("user", "assistant")[at % 2], "content": text.replace("<image>\n", llama_cpp.MARK)}
        for at, text in enumerate(said)
    ]
    text = llama_cpp.render(str(llama_cpp.chat_template(tmp_path)), messages, open_answer=True)
    assert llama_cpp.prompt_ids(tmp_path, text) == ours


def test_the_space_before_a_question_is_noticed(tmp_path: Path) -> None:
    """As it was without `add_prefix_space`, and as it would be without the space of the chat template."""
    run = run_of(FIXTURES / "tiny_vicuna", start_end=True, template="v1")
    ours = ids_in_training(run)
    assert ids_in_llama_cpp(run, tmp_path) == ours
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    prompt = llama_cpp.render(
        str(llama_cpp.chat_template(tmp_path)),
        [{"role": "user", "content": llama_cpp.MARK + QUESTION}],
        open_answer=True,
    )
    assert llama_cpp.prompt_ids(tmp_path, prompt.removeprefix(" ")) != ours
    file.write_text(json.dumps({**settings, "add_prefix_space": None}))
    for each in (prompt, prompt.removeprefix(" ")):
        assert llama_cpp.prompt_ids(tmp_path, each) != ours


@pytest.mark.parametrize("family", ["qwen", "llama_3", "gemma"])
def test_tokenizers_that_write_no_spaces_are_left_alone(family: Any, tmp_path: Path) -> None:
    folder = save_tokenizer(family, tmp_path / "words")
    run = run_of(folder, start_end=True, template=family)
    assert spelling_for(run) == USUAL


def test_a_prompt_that_no_spelling_gives_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(FIXTURES / "tiny_vicuna", start_end=True, template="v1")
    assert spelling_for(run).is_exact
    assert len(notes_of(run, "gguf-ready")) == 1
    monkeypatch.setattr(refusing, "_OTHERS", ())
    assert not spelling_for(run).is_exact
    _, note = notes_of(run, "gguf-ready")
    assert "tokenizes this model's prompts differently" in note
