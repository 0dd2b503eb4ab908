"""Answers to prompts with images: greedy or drawn, several at once, or streamed to a listener."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList

from llava_recipes.data import crops
from llava_recipes.data.collate import images_take
from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.errors import Problem
from llava_recipes.layouts import IMAGE
from llava_recipes.model.assemble import Assembled
from llava_recipes.model.configs import language_half
from llava_recipes.model.forward import image_features
from llava_recipes.plan.types import DataPlan
from llava_recipes.templates import Turn

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: `temperature` 0 takes the most likely one; else `top_p` limits the draw."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    must_fit: bool = True
    """Whether a prompt must leave room for `max_new_tokens`; if not, an answer may be cut."""


@dataclass(frozen=True)
class PromptImage:
    """An image as the tower takes it, and how many tokens it becomes."""

    prepared: crops.PreparedImage
    num_tokens: int


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the answer, with its images' features from the projector.

    input_ids  token ids, -200 where an image goes
    images     float[K, D] each, in reading order
    """

    input_ids: tuple[int, ...]
    images: tuple[Tensor, ...]


class Answerer:
    """Answers with the stage's template and its preparation of images.

    Raises RecipeError when the tokenizer does not fit the template.
    """

    def __init__(self, assembled: Assembled, data: DataPlan, *, start_end: bool) -> None:
        self.assembled, self.data = assembled, data
        self._layout = assembled.image_layout(data)
        self._prompts = Prompts(data, assembled.tokenizer, start_end=start_end)
        stop = self._prompts.stop
        self.stops = () if stop is None else (stop,)

    @property
    def max_positions(self) -> int | None:
        """Tokens that fit into the language model's context, or None when its config does not say."""
        found = getattr(language_half(self.assembled.model.config), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def prepare(self, image: Image.Image) -> PromptImage:
        """An image in RGB, resized and normalized as in training. Raises CannotPrepare."""
        prepared = crops.prepare_image(image, self.assembled.image_processor, self.data)
        return PromptImage(prepared, self._layout.num_tokens(prepared))

    @property
    def least_image_tokens(self) -> int:
        """Tokens that every image takes, whatever its shape."""
        return self._layout.least_tokens

    def look(self, images: Sequence[PromptImage]) -> list[Tensor]:
        """`image_features` of several images, without gradients."""
        model = self.assembled.model
        with evaluating(model):
            return image_features(model, [each.prepared for each in images], self._layout)

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Token ids of a conversation that ends with a question, up to where the answer starts.

        Raises ValueError when it does not fit the template.
        """
        has_image = any(IMAGE in turn.text for turn in turns)
        return tuple(self._prompts.encode_prompt(turns, has_image=has_image))

    def num_tokens(self, input_ids: Sequence[int], num_image_tokens: Sequence[int]) -> int:
        """Positions of a prompt with its images in it."""
        return len(input_ids) - len(num_image_tokens) + sum(num_image_tokens)

    def does_not_fit(
        self, num_tokens: int, num_image_tokens: Sequence[int], decoding: Decoding
    ) -> Problem | None:
        """The problem of a prompt of that length, or None when it and its answer fit into the context."""
        room = self.max_positions
        max_new_tokens = decoding.max_new_tokens if decoding.must_fit else 1
        if room is None or num_tokens + max_new_tokens <= room:
            return None
        in_images = sum(num_image_tokens)
        if in_images >= room:
            return Problem(
                "too many images for the model's context",
                code="context-too-short",
                found=f"{images_take(len(num_image_tokens), in_images)}, "
                f"the context has {room:,} (max_position_embeddings)",
                hint="use fewer images",
            )
        if num_tokens >= room:
            return Problem(
                "the prompt is too long for the model's context",
                code="context-too-short",
                found=f"{num_tokens:,} tokens, {in_images:,} of them images; "
                f"the context has {room:,} (max_position_embeddings)",
                hint="ask a shorter question or use fewer images; in a conversation, /reset starts a new one",
            )
        return Problem(
            "the prompt leaves too little room for the answer",
            code="context-too-short",
            found=f"{num_tokens:,} tokens of prompt, {max_new_tokens:,} for the answer; "
            f"the context has {room:,} (max_position_embeddings)",
            hint=f"write --max-new-tokens {room - num_tokens} or less",
        )

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        listen: Callable[[str], None] | None = None,
        synced_gpus: bool = False,
        is_cut: Callable[[], bool] | None = None,
    ) -> list[str]:
        """The model's answers, in order; see `continue_prompts`."""
        model = self.assembled.model
        with evaluating(model):
            embedded = [embed_with_images(model, each.input_ids, each.images) for each in prompts]
        return continue_prompts(
            model,
            self.assembled.tokenizer,
            embedded,
            decoding=decoding,
            stops=self.stops,
            max_positions=self.max_positions,
            listen=listen,
            synced_gpus=synced_gpus,
            is_cut=is_cut,
        )


def continue_prompts(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    *,
    decoding: Decoding,
    stops: Sequence[str],
    max_positions: int | None = None,
    listen: Callable[[str], None] | None = None,
    synced_gpus: bool = False,
    is_cut: Callable[[], bool] | None = None,
) -> list[str]:
    """The model's answer to each prompt, without special tokens and without white space around it.

    prompts        float[T, D] each, embedded; they are padded on the left to the longest
    stops          texts that end an answer, without belonging to it, besides the tokenizer's end token
    max_positions  tokens of a prompt and its answer together, where the model has a limit
    listen         receives the answer to a single prompt in pieces, which joined are the answer
    synced_gpus    under ZeRO-3 all processes generate until the last of them is done
    is_cut         asked after each token; all answers end where it holds

    Modes of modules are restored; nothing is drawn with temperature 0.
    """
    assert listen is None or len(prompts) == 1, "one answer can be listened to"
    end_ids, end_texts = ends_of(tokenizer, stops)
    drawn = decoding.temperature > 0
    # top_k 0: the library's own default silently cuts at 50.
    chance = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if drawn else {}
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=drawn,
        eos_token_id=end_ids or None,
        pad_token_id=tokenizer.pad_token_id,
        **chance,
    )
    embeds_BTD = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=embeds_BTD.device)
    extra: dict[str, Any] = {}
    reasons: list[StoppingCriteria] = [_SaysOneOf(tokenizer, end_texts)] if end_texts else []
    if max_positions is not None:
        reasons.append(_FillsContext(max_positions - lengths))
    if is_cut is not None:
        reasons.append(_IsCut(is_cut))
    if reasons:
        extra["stopping_criteria"] = StoppingCriteriaList(reasons)
    if listen is not None:
        extra["streamer"] = _Streamer(tokenizer, end_texts, listen)
    places = torch.arange(embeds_BTD.shape[1], device=embeds_BTD.device)
    mask_BT = (places >= embeds_BTD.shape[1] - lengths[:, None]).long()
    with evaluating(model):
        generate: Callable[..., Tensor] = model.generate
        new_ids = generate(
            inputs_embeds=embeds_BTD,
            attention_mask=mask_BT,
            generation_config=settings,
            synced_gpus=synced_gpus,
            **extra,
        )
    texts: list[str] = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return [_before(text, end_texts).strip() for text in texts]


def embed_with_images(
    model: LlavaForConditionalGeneration, prompt_ids: Sequence[int], images: Sequence[Tensor]
) -> Tensor:
    """float[T, D]: a prompt's embeddings, each image's features in the place of its -200.

    images  float[K, D] each, in reading order; K may differ
    """
    embeddings = model.get_input_embeddings()
    device = next(model.parameters()).device
    tags = [place for place, id in enumerate(prompt_ids) if id == IMAGE_ID]
    assert len(tags) == len(images), f"{len(tags)} places for {len(images)} images"
    text_TD: Tensor = embeddings(
        torch.tensor([0 if id == IMAGE_ID else id for id in prompt_ids], device=device)
    )
    pieces, start = [], 0
    for place, image_KD in zip(tags, images, strict=True):
        pieces += [text_TD[start:place], image_KD.to(text_TD)]
        start = place + 1
    return torch.cat([*pieces, text_TD[start:]])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def ends_of(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> tuple[list[int], list[str]]:
    """What ends an answer: the end token and stops that are special tokens, as ids; other stops, as text."""
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = []
    for stop in stops:
        # A special token is found by id; its text is removed before an answer is read.
        special = stop.strip()
        if special in tokenizer.all_special_tokens or special in tokenizer.get_added_vocab():
            ids.append(tokenizer.convert_tokens_to_ids(special))
        else:
            texts.append(stop)
    return list(dict.fromkeys(ids)), texts


def _before(text: str, ends: Sequence[str]) -> str:
    places = [place for end in ends if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else text


class _SaysOneOf(StoppingCriteria):  # type: ignore[misc]
    """Stops each answer of a batch once it contains one of the texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, tuple(texts)
        # A token is at least one byte of text.
        self._num_tokens = max(len(text.encode()) for text in texts) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        tails = self._tokenizer.batch_decode(input_ids[:, -self._num_tokens :], skip_special_tokens=True)
        found = [any(text in tail for text in self._texts) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


class _FillsContext(StoppingCriteria):  # type: ignore[misc]
    """Stops each answer of a batch when its own prompt leaves no more room.

    room_B  int64[B]  most tokens of each answer
    """

    def __init__(self, room_B: Tensor) -> None:
        self._room_B = room_B

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return self._room_B <= input_ids.shape[1]


class _IsCut(StoppingCriteria):  # type: ignore[misc]
    """Stops all answers of a batch when they are no longer wanted."""

    def __init__(self, is_cut: Callable[[], bool]) -> None:
        self._is_cut = is_cut

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((len(input_ids),), self._is_cut(), device=input_ids.device)


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Passes an answer on as it grows, never a piece that later tokens would change."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str], listen: Callable[[str], None]
    ) -> None:
        self._tokenizer, self._ends, self._listen = tokenizer, tuple(ends), listen
        self._ids: list[int] = []
        self._said = ""

    def put(self, value: Tensor) -> None:
        self._ids += value.flatten().tolist()
        text = self._text(self._num_settled()).rstrip("\N{REPLACEMENT CHARACTER}")
        # The last characters may turn out to be the start of an end.
        longest = max((n for end in self._ends for n in range(len(end)) if text.endswith(end[:n])), default=0)
        self._say(text[: len(text) - longest].rstrip())

    def end(self) -> None:
        self._say(self._text(len(self._ids)).rstrip())

    def _num_settled(self) -> int:
        """Tokens whose text is final: a run of single bytes is decoded again with every byte added to it."""
        settled = len(self._ids)
        while settled and _BYTE.fullmatch(
            self._tokenizer.convert_ids_to_tokens(self._ids[settled - 1]) or ""
        ):
            settled -= 1
        return settled

    def _text(self, num_tokens: int) -> str:
        text: str = self._tokenizer.decode(self._ids[:num_tokens], skip_special_tokens=True)
        return _before(text, self._ends).lstrip()

    def _say(self, text: str) -> None:
        if len(text) > len(self._said):
            self._listen(text[len(self._said) :])
            self._said = text
