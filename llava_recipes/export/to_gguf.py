"""The two folders that llama.cpp's converters read: the language model, and the tower with the projector.

They are for `convert_hf_to_gguf.py` and `convert_image_encoder_to_gguf.py`, used as llama.cpp's
docs/multimodal/llava.md describes, after its surgery script. Tested with the llama.cpp of llama-cpp-python
0.3.36.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear
from transformers import AutoModelForCausalLM, CLIPVisionModel, GenerationConfig

from llava_recipes.data.prompts import IMAGE_ID
from llava_recipes.export.checking import Expected, check_logits, in_float32
from llava_recipes.export.jinja import chat_template_of
from llava_recipes.export.public_names import public_name
from llava_recipes.export.refusing import check_allowed, spelling_for
from llava_recipes.export.target import Piece, piece_of, write_json, write_shards
from llava_recipes.export.to_llava import CHAT_TEMPLATE, write_tokenizer, write_tower
from llava_recipes.model.configs import language_half
from llava_recipes.model.forward import num_layers_run, place_image_features
from llava_recipes.model.head import causal_skeleton
from llava_recipes.model.learned_rows import IMAGE_NEWLINE
from llava_recipes.model.weight_names import canonical_parameters, original_name
from llava_recipes.use.opened import OpenedRun

NEWLINE = original_name(IMAGE_NEWLINE)
LANGUAGE, VISION, PROJECTOR = "language_model", "vit", "llava.projector"

_RATIOS = {
    "pad": "llama.cpp resizes images and then pads them to a square; this model was trained on images "
    "padded first, so images that aren't square look slightly different in llama.cpp.",
    "square": "llama.cpp pads images to a square; this model was trained on their center, so images "
    "that aren't square look different in llama.cpp.",
    "anyres": "llama.cpp cuts images into the same crops, but keeps the padding and puts no newline after "
    "a row; this model was trained without padding and with newlines, so images look slightly different in "
    "llama.cpp.",
}
_README = string.Template("""\
# For llama.cpp

`$language` is the language model as a plain Hugging Face folder, `$vision` the vision tower and the
projector. In a checkout of llama.cpp, with its Python requirements installed
(`pip install -r tools/mtmd/requirements.txt`):

```sh
EXPORT=/where/this/folder/is
python convert_hf_to_gguf.py $$EXPORT/$language --outfile $$EXPORT/$language/model-f16.gguf --outtype f16
python tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py -m $$EXPORT/$vision \\
    --llava-projector $$EXPORT/$vision/$projector --output-dir $$EXPORT/$vision --clip-model-is-vision \\
    --image-mean $mean --image-std $std
llama-mtmd-cli -m $$EXPORT/$language/model-f16.gguf --mmproj $$EXPORT/$vision/mmproj-model-f16.gguf \\
    --jinja --temp 0 --image IMAGE -p "What is in this image?"
```

$ratio

This was tested with llama.cpp at 0c1e57098 (in llama-cpp-python 0.3.36), which puts the class token of CLIP
towers after the patches but reads it from before them (its issue 25814), so its answers aren't this
model's. Until that is fixed, swap `inp` and `model.class_embedding` in the `ggml_concat` of
tools/mtmd/models/llava.cpp and build it again.
""")


class GgufExport:
    """A run as two folders for llama.cpp. Raises RecipeError for what its converters would read wrongly."""

    def __init__(self, run: OpenedRun) -> None:
        check_allowed(run, "gguf-ready")
        self._run = run
        self._model = run.assembled.model
        self._spread = run.assembled.image_layout(run.data).spread

    def pieces(self) -> list[Piece]:
        """All weights; only their size is used."""
        return [piece_of(name, parameter) for name, parameter in canonical_parameters(self._model).items()]

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
        """Both folders and a README with the commands."""
        self._write_language_model(folder / LANGUAGE, dtype=dtype, max_bytes=max_bytes)
        vision = folder / VISION
        write_tower(self._run, vision, dtype=dtype)
        config = json.loads((vision / "config.json").read_text("utf-8"))
        # The converter requires it, but the tower alone has none.
        config.setdefault("projection_dim", 0)
        # Without this key the converter drops the last layer, and llama-mtmd-cli the one before it too.
        config["mm_vision_select_layer"] = num_layers_run(self._model.config)
        if self._spread is not None:
            config["image_aspect_ratio"] = "anyres"
            config["mm_patch_merge_type"] = self._spread.merge
            config["image_grid_pinpoints"] = [list(size) for size in self._spread.pinpoints]
        write_json(config, vision / "config.json", sort_keys=True)
        projector = {
            original_name(name): parameter.detach().float().cpu().clone()
            for name, parameter in canonical_parameters(self._model).items()
            if name.startswith("projector.") or (name == IMAGE_NEWLINE and self._spread is not None)
        }
        torch.save(projector, vision / PROJECTOR)
        (folder / "README.md").write_text(self._readme(), "utf-8")

    def check(self, folder: Path, expected: Expected) -> float:
        """Open the parts with transformers alone; return the difference of their logits."""
        return check_logits(expected, self._logits(folder, expected))

    def _write_language_model(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
        folder.mkdir()
        config = language_half(self._model.config)
        causal = causal_skeleton(config)
        roots = {"language_model.": f"{causal.base_model_prefix}.", "lm_head.": "lm_head."}
        pieces = [
            piece_of(theirs + name.removeprefix(ours), parameter)
            for name, parameter in canonical_parameters(self._model).items()
            for ours, theirs in roots.items()
            if name.startswith(ours)
        ]
        write_shards(pieces, folder, dtype=dtype, max_bytes=max_bytes)
        own = type(config).from_dict({**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
        own.architectures = [type(causal).__name__]
        own.name_or_path = public_name(own.name_or_path) if own.name_or_path else ""
        own.save_pretrained(folder)
        tokenizer = self._run.assembled.tokenizer
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
        ).save_pretrained(folder)
        write_tokenizer(self._run, folder)
        write_chat_template(self._run, folder)

    @torch.no_grad()
    def _logits(self, folder: Path, expected: Expected) -> Tensor:
        vision = folder / VISION
        tower = CLIPVisionModel.from_pretrained(vision, dtype="auto", trust_remote_code=False).eval()
        with in_float32(tower):
            states = tower(expected.pixel_values, output_hidden_states=True).hidden_states
        patches_NPV = states[num_layers_run(self._model.config)][:, 1:]
        layers = torch.load(vision / PROJECTOR, weights_only=True)
        first, second = (
            (layers[f"model.mm_projector.{at}.weight"], layers[f"model.mm_projector.{at}.bias"])
            for at in (0, 2)
        )
        features_RD = linear(gelu(linear(patches_NPV, *first)), *second).flatten(0, 1)
        if NEWLINE in layers:
            features_RD = torch.cat([features_RD, layers[NEWLINE][None]])
        del tower
        language = AutoModelForCausalLM.from_pretrained(
            folder / LANGUAGE, dtype="auto", trust_remote_code=False
        ).eval()
        is_image = (expected.input_ids == IMAGE_ID)[None]
        with in_float32(language):
            embeds_BTD = place_image_features(
                text_BTD=language.get_input_embeddings()(expected.input_ids[None].masked_fill(is_image, 0)),
                features_RD=features_RD,
                is_image_BT=is_image,
                places_K=expected.places,
            )
            logits: Tensor = language(inputs_embeds=embeds_BTD).logits[0]
        return logits

    def _readme(self) -> str:
        settings = self._run.assembled.image_processor.to_dict()
        return _README.substitute(
            language=LANGUAGE,
            vision=VISION,
            projector=PROJECTOR,
            mean=" ".join(map(str, settings["image_mean"])),
            std=" ".join(map(str, settings["image_std"])),
            ratio=_RATIOS[self._run.data.image_aspect_ratio],
        )


def write_chat_template(run: OpenedRun, folder: Path) -> None:
    """Write the chat template that llama.cpp renders; it prefers one in tokenizer_config.json."""
    spelling = spelling_for(run)
    text = chat_template_of(
        run, reader="llama.cpp", after_image=spelling.after_image, before_all=spelling.before_all
    )
    (folder / CHAT_TEMPLATE).write_text(text, "utf-8")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    settings.pop("chat_template", None)
    # Without a class the converter reads no chat template; transformers 4 has no TokenizersBackend.
    if settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        is_fast = (folder / "tokenizer.json").is_file()
        settings["tokenizer_class"] = "PreTrainedTokenizerFast" if is_fast else "LlamaTokenizer"
    if not spelling.adds_spaces:
        settings["add_prefix_space"] = False
    write_json(settings, file)
