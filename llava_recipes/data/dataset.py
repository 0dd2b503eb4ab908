"""A stage's samples as token ids, labels and pixel values."""

from __future__ import annotations

import logging
import multiprocessing
from array import array
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from llava_recipes.data.conversation import Record
from llava_recipes.data.crops import ImageLayout, PreparedImage, prepare_image
from llava_recipes.data.images import BadImage, open_images
from llava_recipes.data.order import Grouping
from llava_recipes.data.prompts import IGNORED, Encoded, Prompts
from llava_recipes.data.reading import Reading
from llava_recipes.data.records import open_records
from llava_recipes.errors import Problem, SampleError, name_sample, sample_problem
from llava_recipes.plan.types import DataPlan

logger = logging.getLogger(__name__)

IMAGE_WORDS = 128
"""Words that an image adds to a sample's length with `group_by: length`, as in the original."""


@dataclass(frozen=True)
class Sample:
    """One sample, images not yet expanded and nothing cut.

    input_ids  int64[T]  -200 where an image goes
    labels     int64[T]  -100 where nothing is learned
    images     one for each image, in reading order
    """

    index: int
    id: str
    input_ids: Tensor
    labels: Tensor
    images: tuple[PreparedImage, ...]


class BadImageError(SampleError):
    """A sample whose image cannot be used."""


class StageDataset(Dataset[Sample]):
    """The samples of a stage, in the order of its sources.

    A sample raises SampleError, with index, id and line, when its record is not well formed, when nothing in
    it is learned, or, with `on_bad_image: error`, when its image cannot be used. With `skip` the next sample
    with good images replaces it, and `skipped` records it. With `lazy_preprocess: false` the constructor
    tokenizes every conversation.
    """

    def __init__(
        self,
        data: DataPlan,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        start_end: bool,
    ) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompts = Prompts(data, tokenizer, start_end=start_end)
        self.records = open_records(data.sources, measure=data.group_by != "none")
        # One byte for each sample, shared with the worker processes of the data loaders.
        self._skipped = multiprocessing.RawArray("B", len(self.records))
        self.reading = Reading()
        self._encodings = None if data.lazy_preprocess else self._encode_all()

    def __len__(self) -> int:
        return len(self.records)

    def grouping(self, *, batch_size: int, num_shares: int) -> Grouping | None:
        """How samples of like length are grouped, or None where they are not."""
        if self.data.group_by == "none":
            return None
        by_modality = self.data.group_by == "modality_length"
        lengths = self.records.lengths()
        if not by_modality:
            lengths = [length + IMAGE_WORDS if length > 0 else -length for length in lengths]
        return Grouping(lengths, batch_size=batch_size, num_shares=num_shares, by_modality=by_modality)

    def __getitem__(self, index: int) -> Sample:
        if self.data.on_bad_image == "error":
            return self.read(index)
        for offset in range(len(self.records)):
            try:
                return self.read((index + offset) % len(self.records))
            except BadImageError as error:
                self._note_skipped((index + offset) % len(self.records), error)
        message = "no sample has an image that can be used"
        raise SampleError(Problem(message, code="no-usable-image", hint="check the image folder"))

    def read(self, index: int) -> Sample:
        """The sample itself, whatever `on_bad_image` says: BadImageError where its image cannot be used."""
        with self.reading.of(f"sample {index}"):
            return self._read(index)

    def _read(self, index: int) -> Sample:
        record = self.records[index]
        self.reading.note(self._describe(record, in_folder=True))
        encoded = self._encodings.encoding(index) if self._encodings else self.encoding(record)
        try:
            prepare = partial(prepare_image, processor=self.image_processor, data=self.data)
            images = open_images(self.records, record, prepare)
        except BadImage as error:
            hint = "repair it, or write `on_bad_image: skip`; the run then continues from its last checkpoint"
            message = "its image cannot be used"
            problem = self._problem(record, message, code="bad-image", found=str(error), hint=hint)
            raise BadImageError(problem) from None
        return Sample(
            index=index,
            id=record.id,
            input_ids=torch.tensor(encoded.input_ids),
            labels=torch.tensor(encoded.labels),
            images=tuple(images),
        )

    def describe(self, index: int) -> str:
        """A sample's name in a message: `sample 17 (id "000123"), image 004/000123.jpg`."""
        return self._describe(self.records[index])

    def _describe(self, record: Record, *, in_folder: bool = False) -> str:
        name = name_sample(record.index, record.id)
        if not record.images:
            return name
        folder = f"{record.folder}/" if in_folder and record.folder is not None else ""
        images = ", ".join(f"{folder}{image}" for image in record.images)
        return f"{name}, {'image' if len(record.images) == 1 else 'images'} {images}"

    @property
    def skipped(self) -> Tensor:
        """bool[N]: which samples had a bad image when this process or its workers asked for them."""
        return torch.frombuffer(bytearray(self._skipped), dtype=torch.bool)

    def encoding(self, record: Record) -> Encoded:
        """Token ids and labels of a record. Raises SampleError when it does not fit the template."""
        try:
            encoded = self.prompts.encode(record.turns, has_image=bool(record.images))
        except ValueError as error:
            problem = self._problem(record, str(error), code="sample-does-not-fit-template")
            raise SampleError(problem) from None
        if all(label == IGNORED for label in encoded.labels[1:]):
            message, hint = "nothing in it is learned", "add an answer (a gpt turn)"
            raise SampleError(self._problem(record, message, code="nothing-is-learned", hint=hint))
        return encoded

    def _problem(
        self, record: Record, message: str, *, code: str, found: str | None = None, hint: str | None = None
    ) -> Problem:
        mark = self.records.mark(record.index)
        return sample_problem(record.index, record.id, message, code=code, mark=mark, found=found, hint=hint)

    def _note_skipped(self, index: int, error: BadImageError) -> None:
        if self._skipped[index]:
            return
        self._skipped[index] = 1
        for problem in error.problems:
            logger.warning("skipped %s (%s)", problem.message, problem.found)

    def _encode_all(self) -> _Encodings:
        encodings = _Encodings()
        for index in range(len(self.records)):
            encodings.append(self.encoding(self.records[index]))
        return encodings


class _Encodings:
    """Token ids and labels of many samples in two flat arrays, which forked workers share."""

    def __init__(self) -> None:
        self._input_ids = array("i")
        self._labels = array("i")
        self._ends = array("Q", [0])

    def append(self, encoded: Encoded) -> None:
        self._input_ids.extend(encoded.input_ids)
        self._labels.extend(encoded.labels)
        self._ends.append(len(self._input_ids))

    def encoding(self, index: int) -> Encoded:
        span = slice(self._ends[index], self._ends[index + 1])
        return Encoded(self._input_ids[span].tolist(), self._labels[span].tolist())


@dataclass(frozen=True)
class Preview:
    """A stage's data, opened to be shown."""

    dataset: StageDataset
    layout: ImageLayout
    max_length: int

    def image_tokens(self, sample: Sample) -> list[int]:
        """Tokens of each of a sample's images."""
        return [self.layout.num_tokens(image) for image in sample.images]

    def length(self, sample: Sample) -> int:
        """Tokens of a sample with its images expanded, before the cut at `max_length`."""
        return len(sample.input_ids) - len(sample.images) + sum(self.image_tokens(sample))
