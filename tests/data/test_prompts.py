"""What a stage writes for its tokenizer, with tokenizers that have the special tokens of real models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from llava_recipes.data.prompts import IGNORED, IMAGE_ID, Prompts
from llava_recipes.errors import RecipeError
from llava_recipes.layouts import IMAGE, LAYOUTS, Template
from llava_recipes.plan.types import DataPlan
from llava_recipes.templates import Turn
from tests.chat_tokenizers import CHAT_TEMPLATES, Family, open_tokenizer, save_tokenizer
from tests.tiny import FIXTURES

TURNS = (
    Turn("human", f"{IMAGE}\nWhat is in the image?"),
    Turn("gpt", " A red  square.\n"),
    Turn("human", " And <|im_end|> this? été "),
    Turn("gpt", "A blue circle"),
)
FAMILY_OF: dict[Template, Family] = {
    **dict.fromkeys(("llama_3", "gemma", "phi3"), "llama_3"),
    "llama_3": "llama_3",
    "gemma": "gemma",
    "phi3": "phi3",
    **dict.fromkeys(("mpt", "chatml_direct", "qwen"), "qwen"),
}


def data_plan(**changes: Any) -> DataPlan:
    values: dict[str, Any] = {
        "template": None,
        "sources": (),
        "num_samples": None,
        "image_aspect_ratio": "square",
        "max_length": 2048,
        "shuffle": True,
        "group_by": "none",
        "on_bad_image": "error",
        "lazy_preprocess": True,
    }
    return DataPlan(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for family in ("llama_3", "qwen", "gemma", "phi3"):
        save_tokenizer(family, root / family, chat_template=CHAT_TEMPLATES[family])
    return root


@cache
def tokenizer_for(folder: Path, template: Template) -> PreTrainedTokenizerBase:
    """A tokenizer that has the tokens of a template: its own model's, else Llama's."""
    return open_tokenizer(folder / FAMILY_OF[template] if template in FAMILY_OF else FIXTURES / "tiny_vicuna")


@pytest.mark.parametrize("template", LAYOUTS)
def test_an_open_prompt_and_its_answer_are_what_training_has(folder: Path, template: Template) -> None:
    tokenizer = tokenizer_for(folder, template)
    prompts = Prompts(data_plan(template=template), tokenizer, start_end=False)
    for end in (2,) if template == "plain" else (2, 4):
        whole = prompts.encode(TURNS[:end], has_image=True)
        prompt = prompts.encode_prompt(TURNS[: end - 1], has_image=True)
        assert whole.input_ids[: len(prompt)] == prompt
        answer = whole.labels[len(prompt) :]
        stop = prompts.stop
        assert stop is not None
        # What follows is learned up to the text that ends an answer, and there is only this one answer.
        learned = [label for label in answer if label != IGNORED]
        said = tokenizer.decode(learned)
        assert said.strip().startswith(TURNS[end - 1].text.strip())
        assert stop.strip() == "" or said.rstrip().endswith(stop)
        assert answer[: len(learned)] == learned


@pytest.mark.parametrize("family", ["llama_3", "qwen", "gemma"])
@pytest.mark.parametrize("num_turns", [1, 2, 3, 4])
def test_a_template_is_the_models_own_chat_template(folder: Path, family: Family, num_turns: int) -> None:
    tokenizer = open_tokenizer(folder / family)
    turns = TURNS[:num_turns]
    ours = Prompts(data_plan(template=family), tokenizer, start_end=False)
    system_prompt = LAYOUTS[family].system
    chat = data_plan(chat_template="tokenizer", system_prompt=system_prompt)
    theirs = Prompts(chat, tokenizer, start_end=False)
    assert ours.encode(turns, has_image=True) == theirs.encode(turns, has_image=True)
    assert ours.stop == theirs.stop
    if turns[-1].role == "human":
        prompt = ours.encode_prompt(turns, has_image=True)
        assert prompt == theirs.encode_prompt(turns, has_image=True)
        assert prompt.count(IMAGE_ID) == 1


def test_phi3s_own_chat_template_ends_with_one_token_more(folder: Path) -> None:
    """The end of text after the whole conversation, which is not learned."""
    tokenizer = open_tokenizer(folder / "phi3")
    ours = Prompts(data_plan(template="phi3"), tokenizer, start_end=False)
    chat = data_plan(chat_template="tokenizer", system_prompt=LAYOUTS["phi3"].system)
    theirs = Prompts(chat, tokenizer, start_end=False)
    expected = theirs.encode(TURNS, has_image=True)
    written = ours.encode(TURNS, has_image=True)
    assert expected.input_ids == [*written.input_ids, tokenizer.eos_token_id]
    assert expected.labels == [*written.labels, IGNORED]
    assert ours.encode_prompt(TURNS[:3], has_image=True) == theirs.encode_prompt(TURNS[:3], has_image=True)


@pytest.mark.parametrize("family", ["llama_3", "gemma"])
@pytest.mark.parametrize("kind", ["template", "chat_template"])
def test_a_text_begins_once(folder: Path, family: Family, kind: str) -> None:
    tokenizer = open_tokenizer(folder / family)
    plan = data_plan(**{kind: family if kind == "template" else "tokenizer"})
    ids = Prompts(plan, tokenizer, start_end=False).encode(TURNS, has_image=True).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_template_is_written_as_its_own_method_writes_it(folder: Path) -> None:
    tokenizer = open_tokenizer(folder / "qwen")
    prompts = Prompts(data_plan(chat_template="tokenizer"), tokenizer, start_end=False)
    messages = [
        {"role": {"human": "user", "gpt": "assistant"}[turn.role], "content": turn.text} for turn in TURNS[2:]
    ]
    wanted = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert prompts.encode(TURNS[2:], has_image=False).input_ids == wanted
    wanted = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert prompts.encode_prompt(TURNS[2:3], has_image=False) == wanted


def test_images_stay_in_their_places_with_a_chat_template(folder: Path) -> None:
    turns = [Turn("human", f"First {IMAGE}, then {IMAGE}: which?"), Turn("gpt", "The second")]
    tokenizer = open_tokenizer(folder / "qwen", start_end=True)
    prompts = Prompts(data_plan(chat_template="tokenizer"), tokenizer, start_end=True)
    text = "".join(segment.text for segment in prompts.spell(turns, has_image=True))
    first, second = (f"<im_start>{IMAGE}<im_end>",) * 2
    assert f"user\nFirst {first}, then {second}: which?<|im_end|>" in text
    ids = prompts.encode(turns, has_image=True).input_ids
    start, end = tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    assert [ids[at - 1 : at + 2] for at, id in enumerate(ids) if id == IMAGE_ID] == [
        [start, IMAGE_ID, end]
    ] * 2


@pytest.mark.parametrize("template", ["qwen", "llama_3", "gemma", "phi3", "mpt", "chatml_direct"])
def test_a_template_for_another_tokenizer_is_refused(template: Template) -> None:
    tokenizer = open_tokenizer(FIXTURES / "tiny_vicuna")
    token = LAYOUTS[template].tokens[0]
    num_pieces = len(tokenizer(token, add_special_tokens=False).input_ids)
    with pytest.raises(RecipeError) as caught:
        Prompts(data_plan(template=template), tokenizer, start_end=False)
    (problem,) = caught.value.problems
    assert problem.path == ("data", "template")
    assert (
        problem.message == f"template `{template}` needs the token {token}, which this tokenizer doesn't have"
    )
    assert problem.found is not None and problem.found.endswith(f"spells it in {num_pieces} tokens")
    assert num_pieces > 1
    assert problem.hint == "choose the template of this language model"


def test_a_tokenizers_own_chat_template_is_offered_where_it_has_one(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Prompts(data_plan(template="gemma"), open_tokenizer(folder / "qwen"), start_end=False)
    hint = caught.value.problems[0].hint
    assert hint == "choose the template of this language model, or `chat_template: tokenizer`"


def test_llamas_marks_are_refused_where_they_are_text(folder: Path) -> None:
    with pytest.raises(RecipeError, match="needs the token <s>"):
        Prompts(data_plan(template="llama_2"), open_tokenizer(folder / "qwen"), start_end=False)


def test_v1_ends_with_the_end_that_a_tokenizer_has(folder: Path) -> None:
    tokenizer = open_tokenizer(folder / "phi3")
    prompts = Prompts(data_plan(template="v1"), tokenizer, start_end=False)
    assert prompts.stop == "<|endoftext|>"
    assert prompts.encode(TURNS, has_image=True).labels[-1] == tokenizer.eos_token_id
