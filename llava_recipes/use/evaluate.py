"""Measure a model on an annotated file: the loss of the reference answers, and how often it gives them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava_recipes.data.conversation import Record
from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.images import BadImage, open_images
from llava_recipes.data.prompts import IGNORED
from llava_recipes.data.records import Records, check_records
from llava_recipes.errors import Mark, RecipeError
from llava_recipes.layouts import IMAGE
from llava_recipes.model.assemble import collator_of, open_samples
from llava_recipes.model.generate import Answerer, Decoding, PromptImage, evaluating
from llava_recipes.plan.types import SourcePlan
from llava_recipes.templates import Turn, spoken_turns
from llava_recipes.use.batches import answer_in_batches, check_questions
from llava_recipes.use.opened import Opened

Advance = Callable[[int], None]


@dataclass(frozen=True)
class TokenMeasure:
    """A measure of the reference answers, each token given all tokens before it.

    loss            mean of -log p over all learned tokens of all samples, in nats
    token_accuracy  share of these tokens that are the model's most likely one
    """

    num_samples: int
    num_tokens: int
    loss: float
    token_accuracy: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class MatchMeasure:
    """A measure of the model's own answers, each after the reference conversation before it."""

    num_answers: int
    num_exact: int
    num_normalized: int

    @property
    def exact_match(self) -> float:
        return self.num_exact / self.num_answers

    @property
    def exact_match_normalized(self) -> float:
        return self.num_normalized / self.num_answers


@dataclass(frozen=True)
class Referenced:
    """A question and its answer in the file."""

    record: Record
    records: Records
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    reference: str

    @property
    def index(self) -> int:
        """The number of its conversation in the file."""
        return self.record.index

    @property
    def mark(self) -> Mark:
        """Where the conversation begins in its file."""
        return self.records.mark(self.record.index)

    def prepared_images(self, answerer: Answerer) -> list[PromptImage]:
        """The images as the tower takes them. Raises RecipeError when one cannot be used."""
        try:
            return open_images(self.records, self.record, answerer.prepare, numbers=range(len(self.images)))
        except BadImage as error:
            message = f"the image {error.file} cannot be used"
            raise RecipeError.of(message, code="bad-image", mark=self.mark, found=error.reason) from None


def open_data(opened: Opened, file: str, *, images: str) -> StageDataset:
    """An annotation file as the run's last stage would read it, in file order.

    Raises RecipeError for a file or records that cannot be used; images are not read.
    """
    changes = {
        "sources": (SourcePlan(annotations=file, images=images, num_samples=None),),
        "num_samples": None,
        "shuffle": False,
        "order": "file",
        "group_by": "none",
        "on_bad_image": "error",
        "lazy_preprocess": True,
        "validation": None,
    }
    run = opened.run
    data = run.data.model_copy(update=changes)
    dataset = open_samples(run.assembled, data, start_end=run.plan.image_tokens.start_end)
    problems = check_records(dataset.records)
    if problems:
        raise RecipeError(*problems)
    return dataset


def measure_tokens(
    opened: Opened, dataset: StageDataset, *, num_samples: int, batch_size: int, advance: Advance
) -> TokenMeasure:
    """Loss and token accuracy over the first `num_samples`, with the forward pass of training.

    Raises SampleError for a sample that cannot be used, or has no learned token within `max_length`.
    """
    model = opened.run.assembled.model
    collator = collator_of(opened.run.assembled, dataset)
    device = next(model.parameters()).device
    logits_LV = []
    # The forward pass applies the head to learned positions only, and returns their loss, not their logits.
    hook = model.lm_head.register_forward_hook(lambda module, given, made: logits_LV.append(made))
    total, num_tokens, num_right = 0.0, 0, 0
    try:
        with evaluating(model):
            for first in range(0, num_samples, batch_size):
                samples = [dataset[index] for index in range(first, min(first + batch_size, num_samples))]
                batch = {name: tensor.to(device) for name, tensor in collator(samples).items()}
                total += float(model(**batch, num_items_in_batch=1).loss)
                next_BS = batch["labels"][:, 1:]
                targets_L = next_BS[next_BS != IGNORED]
                num_right += int((logits_LV.pop().argmax(dim=-1) == targets_L).sum())
                num_tokens += targets_L.numel()
                advance(len(samples))
    finally:
        hook.remove()
    return TokenMeasure(num_samples, num_tokens, total / num_tokens, num_right / num_tokens)


def read_references(records: Records, *, num_samples: int) -> list[Referenced]:
    """Every answer of the first `num_samples` conversations, with the turns before it."""
    return [found for index in range(num_samples) for found in _references(records, records[index])]


def measure_matches(
    answerer: Answerer,
    references: Sequence[Referenced],
    *,
    decoding: Decoding,
    batch_size: int,
    advance: Advance,
) -> MatchMeasure:
    """How many of the model's answers equal the reference, exactly and after `normalized`.

    Raises RecipeError when a question does not fit or an image cannot be used.
    """
    check_questions(answerer, references, decoding)
    num_exact = num_normalized = 0
    start = 0
    for answers in answer_in_batches(answerer, references, decoding, batch_size=batch_size, seed=0):
        for asked, answer in zip(references[start : start + len(answers)], answers, strict=True):
            num_exact += answer == asked.reference.strip()
            num_normalized += normalized(answer) == normalized(asked.reference)
        start += len(answers)
        advance(len(answers))
    return MatchMeasure(len(references), num_exact, num_normalized)


def normalized(text: str) -> str:
    """The text without case, punctuation (replaced by spaces) and extra spaces."""
    characters = (
        " " if unicodedata.category(character).startswith("P") else character
        for character in unicodedata.normalize("NFKC", text).casefold()
    )
    return " ".join("".join(characters).split())


def _references(records: Records, record: Record) -> list[Referenced]:
    turns = spoken_turns(record.turns)
    found = []
    for place, turn in enumerate(turns):
        if turn.role == "human":
            continue
        before = tuple(turns[:place])
        num_images = sum(each.text.count(IMAGE) for each in before)
        found.append(Referenced(record, records, before, record.images[:num_images], turn.text))
    return found
