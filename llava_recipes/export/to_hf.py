"""llava-hf's layout, for transformers and vLLM; models with `spatial_unpad` as LLaVA-NeXT."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    AutoProcessor,
    BaseImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from llava_recipes.anyres import AnyRes
from llava_recipes.data.chat_template import TemplateLimit, render, template_place
from llava_recipes.data.crops import any_res_processor
from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.data.tokenizer import with_mean_rows
from llava_recipes.errors import RecipeError
from llava_recipes.export.checking import QUESTION, Expected, check_logits, drawn_image, in_float32
from llava_recipes.export.jinja import chat_template_of
from llava_recipes.export.public_names import public_name, without_paths
from llava_recipes.export.refusing import check_allowed
from llava_recipes.export.target import Piece, write_json, write_shards
from llava_recipes.layouts import IMAGE
from llava_recipes.model.configs import has_class_token, language_half, vision_half
from llava_recipes.model.generate import ends_of
from llava_recipes.model.head import causal_class
from llava_recipes.model.learned_rows import IMAGE_NEWLINE
from llava_recipes.model.weight_names import canonical_parameters, hf_name
from llava_recipes.recipe.scalars import say_number
from llava_recipes.templates import Turn
from llava_recipes.use.foreign_folders import write_note
from llava_recipes.use.opened import OpenedRun

PAD = "<pad>"
ROWS_MULTIPLE = 64
"""llava-hf pads a vocabulary to a multiple of this."""


def next_config(config: LlavaConfig, spread: AnyRes) -> LlavaNextConfig:
    """The config with which LlavaNextForConditionalGeneration computes what our model does.

    It can't express other merges of crops than `spatial_unpad` or other projectors than `mlp2x_gelu`:
    `plan.exports` refuses those.
    """
    assert spread.merge == "spatial_unpad", spread.merge
    return LlavaNextConfig(
        vision_config=vision_half(config),
        text_config=language_half(config),
        image_token_index=config.image_token_index,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_grid_pinpoints=height_first(spread),
        image_seq_length=config.image_seq_length,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def next_image_processor(processor: BaseImageProcessor, spread: AnyRes) -> LlavaNextImageProcessorPil:
    """transformers' image processor with the crops of `prepare_image`."""
    settings = {**any_res_processor(processor).to_dict(), "image_grid_pinpoints": height_first(spread)}
    made: LlavaNextImageProcessorPil = LlavaNextImageProcessorPil.from_dict(settings)
    return made


def height_first(spread: AnyRes) -> list[list[int]]:
    """The pinpoints as transformers reads them, height before width; of equal ones it takes the first."""
    return [[height, width] for width, height in spread.pinpoints]


class HfExport:
    """A run in llava-hf's layout. Raises RecipeError if transformers' class can't express the model."""

    def __init__(self, run: OpenedRun) -> None:
        check_allowed(run, "hf")
        self._run = run
        self._model = run.assembled.model
        self._tokenizer = _with_image_token(run.assembled.tokenizer)
        self._num_rows = _grown(language_half(self._model.config).vocab_size, len(self._tokenizer))
        self._spread = run.assembled.image_layout(run.data).spread

    def pieces(self) -> list[Piece]:
        """The weights with llava-hf's names; embeddings and head have rows for the new tokens."""
        embeddings = self._model.get_input_embeddings().weight
        head = self._model.lm_head.weight
        return [
            self._grown_piece(hf_name(name), parameter)
            if parameter is embeddings or parameter is head
            else Piece(hf_name(name), tuple(parameter.shape), lambda parameter=parameter: parameter)  # type: ignore[misc]
            for name, parameter in canonical_parameters(self._model).items()
            # A model for images of one size doesn't use the newline.
            if name != IMAGE_NEWLINE or self._spread is not None
        ]

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
        """Write config, weights, processor and generation settings into a folder."""
        write_shards(self.pieces(), folder, dtype=dtype, max_bytes=max_bytes)
        config = self._config(dtype)
        config.save_pretrained(folder)
        ends = _ends(self._run)
        GenerationConfig(
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=ends if len(ends) > 1 else ends[0] if ends else None,
            pad_token_id=self._tokenizer.pad_token_id,
        ).save_pretrained(folder)
        self._write_processor(folder, config)
        own = self._run.assembled.tokenizer.get_chat_template() if self._run.data.template is None else None
        write_note(folder, self._run.data, chat_template=own)

    def check(self, folder: Path, expected: Expected) -> float:
        """Open the folder with transformers alone; return the difference of its logits.

        Raises RecipeError unless its prompt, pixels and logits are the run's.
        """
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        content = [{"type": "image", "image": drawn_image()}]
        if self._run.data.template != "plain":
            content.append({"type": "text", "text": QUESTION})
        shown = [_without_image(part) for part in content]
        prompt = _rendered(self._run, processor, [{"role": "user", "content": shown}])
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=_constant(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        image_id = self._tokenizer.convert_tokens_to_ids(IMAGE)
        theirs = inputs["input_ids"][0]
        ours = expected.input_ids.masked_fill(expected.input_ids == IMAGE_ID, image_id)
        if theirs.tolist() != ours.tolist():
            raise _other_prompt(self._tokenizer, ours.tolist(), theirs.tolist())
        # LLaVA-NeXT's processor adds a dimension for the crops of each image.
        pixels = inputs["pixel_values"].reshape(expected.pixel_values.shape)
        apart = float((pixels - expected.pixel_values).abs().max())
        if apart > 1e-6:
            raise RecipeError.of(
                "the exported processor prepares images differently from the run",
                code="export-prepares-images-otherwise",
                found=f"pixel values differ by {say_number(apart, digits=2)}",
            )
        return check_logits(expected, _stock_logits(folder, inputs))

    def _grown_piece(self, name: str, rows: Tensor) -> Piece:
        shape = (max(self._num_rows, rows.shape[0]), *rows.shape[1:])
        return Piece(name, shape, lambda: with_mean_rows(rows, self._num_rows))

    def _config(self, dtype: torch.dtype) -> LlavaConfig | LlavaNextConfig:
        config: LlavaConfig | LlavaNextConfig = copy.deepcopy(self._model.config)
        architecture = "LlavaForConditionalGeneration"
        if self._spread is not None:
            config = next_config(config, self._spread)
            architecture = "LlavaNextForConditionalGeneration"
        halves = (language_half(config), vision_half(config))
        halves[0].vocab_size = self._num_rows
        halves[0].pad_token_id = config.pad_token_id = self._tokenizer.pad_token_id
        config.image_token_index = self._tokenizer.convert_tokens_to_ids(IMAGE)
        config.architectures = [architecture]
        # vLLM builds this class; a LLaVA checkpoint as the base leaves another one here.
        halves[0].architectures = [causal_class(halves[0]).__name__]
        for each in (config, *halves):
            each.dtype = dtype
            each.name_or_path = public_name(each.name_or_path) if each.name_or_path else ""
        return config

    def _write_processor(self, folder: Path, config: LlavaConfig | LlavaNextConfig) -> None:
        tower = vision_half(config)
        kind = LlavaProcessor if self._spread is None else LlavaNextProcessor
        # Tokenizers that treat the text after an image as a beginning need a space to do so here.
        for after_image in ("", " "):
            processor = kind(
                image_processor=_image_processor(self._run, self._spread),
                tokenizer=self._tokenizer,
                patch_size=tower.patch_size,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                num_additional_image_tokens=int(has_class_token(tower)),
                chat_template=chat_template_of(self._run, reader="hf", after_image=after_image),
            )
            if self._spells_as_the_run(processor):
                break
        self._tokenizer.padding_side = "left"
        processor.save_pretrained(folder)
        # Older versions of transformers and other programs read the image settings here.
        processor.image_processor.save_pretrained(folder)
        _name_plain_tokenizer(folder)

    def _spells_as_the_run(self, processor: LlavaProcessor | LlavaNextProcessor) -> bool:
        if self._run.data.template == "plain":
            return True
        text = _rendered(self._run, processor, [{"role": "user", "content": f"{IMAGE}\n{QUESTION}"}])
        asked = [Turn("human", f"{IMAGE}\n{QUESTION}")]
        ours = [
            self._tokenizer.convert_tokens_to_ids(IMAGE) if id == IMAGE_ID else id
            for id in _prompts(self._run).encode_prompt(asked, has_image=True)
        ]
        writes_bos = bool(self._tokenizer.bos_token) and text.startswith(self._tokenizer.bos_token)
        theirs = self._tokenizer(text, add_special_tokens=not writes_bos).input_ids
        return cast(list[int], theirs) == ours


def _prompts(run: OpenedRun) -> Prompts:
    return Prompts(run.data, run.assembled.tokenizer, start_end=run.plan.image_tokens.start_end)


def _rendered(
    run: OpenedRun, processor: LlavaProcessor | LlavaNextProcessor, messages: list[dict[str, Any]]
) -> str:
    """What a processor's chat template, which may contain the tokenizer's, writes before an answer."""
    tokenizer = run.assembled.tokenizer
    try:
        return render(
            processor.chat_template,
            messages,
            names=processor.tokenizer.special_tokens_map,
            add_generation_prompt=True,
        ).text
    except TemplateLimit as error:
        if run.data.template is not None:
            raise
        place = template_place(tokenizer)
        raise TemplateLimit(error.reason, where=f"the tokenizer's chat template in {place}") from None


def _without_image(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else part


def _constant(text: str) -> str:
    """A chat template that writes a text for any messages."""
    spelled = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'{{{{ "{spelled}" }}}}'


def _with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy with the token `<image>`, and with a padding token if ours uses another token for it."""
    own = copy.deepcopy(tokenizer)
    if IMAGE not in own.get_vocab():
        own.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    if own.pad_token in (own.unk_token, own.eos_token):
        own.add_special_tokens({"pad_token": PAD})
    return own


def _grown(num_rows: int, num_tokens: int) -> int:
    """The rows of the vocabulary: unchanged if the tokens fit, else the next multiple."""
    return num_rows if num_tokens <= num_rows else -(-num_tokens // ROWS_MULTIPLE) * ROWS_MULTIPLE


def _image_processor(run: OpenedRun, spread: AnyRes | None) -> BaseImageProcessor:
    """The run's image processor, one that pads to a square first, or one that cuts images into crops."""
    own = run.assembled.image_processor
    if spread is not None:
        return next_image_processor(own, spread)
    if run.data.image_aspect_ratio != "pad":
        return own
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    settings = {key: value for key, value in own.to_dict().items() if key != "image_processor_type"}
    center_crop = {} if "do_center_crop" in settings else {"do_center_crop": False}
    padding: BaseImageProcessor = LlavaImageProcessorPil.from_dict(
        {**settings, **center_crop, "do_pad": True}
    )
    return padding


def _ends(run: OpenedRun) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and the template's if that is one token."""
    stop = _prompts(run).stop
    return ends_of(run.assembled.tokenizer, () if stop is None else (stop,))[0]


def _name_plain_tokenizer(folder: Path) -> None:
    """Make transformers read tokenizer.json alone: a model's tokenizer class may treat spaces differently."""
    file = folder / "tokenizer_config.json"
    settings = without_paths(json.loads(file.read_text("utf-8")))
    for key in ("is_local", "local_files_only", "backend", "vocab_file", "add_prefix_space"):
        settings.pop(key, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(settings, file)


@torch.no_grad()
def _stock_logits(folder: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    model, loading = AutoModelForImageTextToText.from_pretrained(
        folder, dtype="auto", output_loading_info=True, trust_remote_code=False
    )
    left = {key: sorted(names)[:3] for key, names in loading.items() if names}
    assert not left, f"weights that transformers did not place: {left}"
    model.eval()
    with in_float32(model):
        logits: Tensor = model(**inputs).logits[0]
    return logits


def _other_prompt(tokenizer: PreTrainedTokenizerBase, ours: list[int], theirs: list[int]) -> RecipeError:
    place = next(
        (at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    found = (
        f"from token {place:,} on: {tokenizer.convert_ids_to_tokens(ours[place : place + 4])} in training, "
        f"{tokenizer.convert_ids_to_tokens(theirs[place : place + 4])} in the export"
    )
    return RecipeError.of(
        "the exported processor tokenizes prompts differently from the run",
        code="export-spells-otherwise",
        found=found,
    )
