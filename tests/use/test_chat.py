"""Conversations: what is remembered, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.generate import Answerer, Decoding, Prompt, PromptImage
from llava_recipes.templates import Turn
from llava_recipes.use.chat import Chat
from tests.images import read_image
from tests.model.plans import GOLDEN, plan_of
from tests.model.test_generate import data_plan

IMAGES = GOLDEN / "fixtures" / "images"
RED, WIDE = str(IMAGES / "rgb_0.jpg"), str(IMAGES / "rgb_wide.jpg")
DECODING = Decoding(max_new_tokens=8)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    plan = plan_of(init_from=GOLDEN / "06_stage1" / "base" / "mm_projector.bin")
    return Answerer(assemble(plan, dtype=torch.float32), data_plan("v1"), start_end=False)


def conversation(answerer: Answerer, notes: list[str] | None = None) -> Chat:
    return Chat(answerer, DECODING, say=(notes if notes is not None else []).append)


def answer_to(answerer: Answerer, turns: list[Turn], *images: str) -> str:
    prepared = answerer.look([answerer.prepare(read_image(str(IMAGES), Path(file).name)) for file in images])
    return answerer.answer([Prompt(answerer.prompt_ids(turns), tuple(prepared))], DECODING)[0]


def test_what_was_said_and_shown_is_remembered(answerer: Answerer) -> None:
    notes: list[str] = []
    talk = conversation(answerer, notes)
    talk.show(RED)
    first = talk.ask("What is it?")
    talk.show(WIDE)
    second = talk.ask("And this <image>, is it the same?")
    turns = [Turn("human", "<image>\nWhat is it?")]
    assert first == answer_to(answerer, turns, RED)
    turns += [Turn("gpt", first), Turn("human", "And this <image>, is it the same?")]
    assert second == answer_to(answerer, turns, RED, WIDE)
    assert notes == ["the question has no <image> tag: images are put in front of it"]


def test_an_image_is_looked_at_once(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = answerer.look

    def counted(images: Sequence[PromptImage]) -> list[Tensor]:
        looks.append(len(images))
        return look(images)

    monkeypatch.setattr(answerer, "look", counted)
    talk = conversation(answerer)
    talk.show(RED)
    for question in ("What is it?", "Really?", "Why?"):
        talk.ask(question)
    assert looks == [1]


def test_reset_forgets(answerer: Answerer) -> None:
    talk = conversation(answerer)
    talk.show(RED)
    first = talk.ask("What is it?")
    talk.reset()
    talk.show(RED)
    assert talk.ask("What is it?") == first


def test_an_interrupted_answer_stays_as_far_as_it_was_said(answerer: Answerer) -> None:
    talk = conversation(answerer)
    said: list[str] = []

    def stop_soon(piece: str) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("What is it?", stop_soon)
    turns = [Turn("human", "What is it?"), Turn("gpt", "".join(said)), Turn("human", "Go on")]
    assert talk.ask("Go on") == answer_to(answerer, turns)


@pytest.mark.parametrize(
    ("images", "question", "message"),
    [
        ((), "What is <image>?", "the question has more tags than images"),
        ((RED,), "<image> or <image>?", "the question has more tags than images"),
        ((RED, WIDE), "What is <image>?", "the question has more images than tags"),
        ((RED,) * 130, "Which?", "too many images for the model's context"),
        ((), "why " * 3000, "the prompt is too long for the model's context"),
        ((), "why\udcff", "the question must be UTF-8"),
    ],
)
def test_what_cannot_be_asked_changes_nothing(
    answerer: Answerer, images: tuple[str, ...], question: str, message: str
) -> None:
    talk = conversation(answerer)
    for file in images:
        talk.show(file)
    with pytest.raises(RecipeError) as caught:
        talk.ask(question)
    assert [problem.message for problem in caught.value.problems] == [message]
    assert talk.num_waiting == len(images)


@pytest.mark.parametrize("name", ["missing.jpg", "not_an_image.jpg"])
def test_an_image_that_is_not_one(answerer: Answerer, tmp_path: Path, name: str) -> None:
    (tmp_path / "not_an_image.jpg").write_text("words")
    with pytest.raises(RecipeError) as caught:
        conversation(answerer).show(str(tmp_path / name))
    assert caught.value.problems[0].message == f"the image {tmp_path / name} cannot be used"


def test_a_captioner_has_no_conversation(answerer: Answerer) -> None:
    notes: list[str] = []
    talk = conversation(Answerer(answerer.assembled, data_plan("plain"), start_end=False), notes)
    talk.show(RED)
    first = talk.ask("What is it?")
    talk.show(RED)
    assert talk.ask("") == first
    assert notes == ["this run has the template `plain`, which captions images: the question is ignored"]
    with pytest.raises(RecipeError, match="and no image was added"):
        talk.ask("")
