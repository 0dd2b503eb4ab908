"""Questions about pictures, and what a model answers, written and read as its stage taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from llava_recipes.data import crops
from llava_recipes.data.prompts import Prompts
from llava_recipes.model.assemble import Assembled
from llava_recipes.model.configs import language_half
from llava_recipes.model.features import picture_features
from llava_recipes.model.generate import Decoding, continue_prompts, embed_with_pictures, evaluating
from llava_recipes.plan.types import DataPlan
from llava_recipes.recipe.errors import Problem
from llava_recipes.templates import IMAGE, Turn


@dataclass(frozen=True)
class PromptImage:
    """A picture as the tower takes it, and how many tokens it becomes."""

    prepared: crops.PreparedImage
    num_tokens: int


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the answer, with what the projector made of its pictures.

    input_ids  token ids, -200 where a picture goes
    pictures   float[K, D] each, in reading order
    """

    input_ids: tuple[int, ...]
    pictures: tuple[Tensor, ...]


class Answerer:
    """Answers as the stage taught: the same template, the same preparation of pictures.

    Raises RecipeError when the tokenizer does not go with the template.
    """

    def __init__(self, assembled: Assembled, data: DataPlan, *, start_end: bool) -> None:
        self.assembled, self.data = assembled, data
        self._layout = assembled.image_layout(data)
        self._prompts = Prompts(data, assembled.tokenizer, start_end=start_end)
        stop = self._prompts.stop
        self.stops = () if stop is None else (stop,)

    @property
    def max_positions(self) -> int | None:
        """Tokens that fit into the language model's context, or None where its config does not say."""
        found = getattr(language_half(self.assembled.model.config), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def prepare(self, image: Image.Image) -> PromptImage:
        """A picture in RGB, resized and normalised as in training. Raises CannotPrepare."""
        prepared = crops.prepare_picture(image, self.assembled.image_processor, self.data)
        return PromptImage(prepared, self._layout.num_tokens(prepared))

    @property
    def least_picture_tokens(self) -> int:
        """Tokens that every picture takes, whatever its shape."""
        return self._layout.least_tokens

    def look(self, pictures: Sequence[PromptImage]) -> list[Tensor]:
        """float[K, D] of each picture: what the language model sees of it. The tower runs once for all."""
        model = self.assembled.model
        with evaluating(model):
            return picture_features(model, [each.prepared for each in pictures], self._layout)

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Token ids of a conversation that ends with a question, up to where the answer begins.

        Raises ValueError when the template cannot hold it.
        """
        has_image = any(IMAGE in turn.text for turn in turns)
        return tuple(self._prompts.encode_prompt(turns, has_image=has_image))

    def num_tokens(self, input_ids: Sequence[int], num_picture_tokens: Sequence[int]) -> int:
        """Positions of a prompt with its pictures in it."""
        return len(input_ids) - len(num_picture_tokens) + sum(num_picture_tokens)

    def does_not_fit(
        self, num_tokens: int, num_picture_tokens: Sequence[int], decoding: Decoding
    ) -> Problem | None:
        """What is wrong with a prompt of that length, or None when its answer fits into the context too."""
        room = self.max_positions
        max_new_tokens = decoding.max_new_tokens if decoding.must_fit else 1
        if room is None or num_tokens + max_new_tokens <= room:
            return None
        in_pictures = sum(num_picture_tokens)
        if in_pictures >= room:
            return Problem(
                "too many pictures for the model's context",
                code="context-too-short",
                found=f"{len(num_picture_tokens)} pictures take {in_pictures:,} tokens, "
                f"the context has {room:,} (max_position_embeddings)",
                hint="give fewer pictures",
            )
        if num_tokens >= room:
            return Problem(
                "the prompt is too long for the model's context",
                code="context-too-short",
                found=f"{num_tokens:,} tokens, {in_pictures:,} of them pictures; "
                f"the context has {room:,} (max_position_embeddings)",
                hint="ask a shorter question or give fewer pictures; in a conversation, /reset begins anew",
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
    ) -> list[str]:
        """The model's answers, in order; see `continue_prompts`."""
        model = self.assembled.model
        with evaluating(model):
            embedded = [embed_with_pictures(model, each.input_ids, each.pictures) for each in prompts]
        return continue_prompts(
            model,
            self.assembled.tokenizer,
            embedded,
            decoding=decoding,
            stops=self.stops,
            max_positions=self.max_positions,
            listen=listen,
            synced_gpus=synced_gpus,
        )
