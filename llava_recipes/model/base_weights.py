"""Put base weights, from files or drawn from a seed, into the assembled model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava_recipes.data.tokenizer import Vocabulary, with_new_rows
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.model.checkpoint import TensorsInMemory, TensorSource, open_checkpoint
from llava_recipes.model.configs import LANGUAGE_PATH, TOWER_PATH, Origin
from llava_recipes.model.head import body_class, causal_class, causal_skeleton
from llava_recipes.model.placing import Placement, check_names, check_shape
from llava_recipes.model.weight_names import Layout, Renamed, canonical_in

# Values that older transformers versions saved and newer ones compute.
COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.(masked_)?bias)$")
OLD_HEAD = re.compile(r"^embed_out\.")
OTHER_HALF = re.compile(r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$)")


def place_language_model(placement: Placement, origin: Origin, vocabulary: Vocabulary, *, seed: int) -> None:
    """Fill body and head from the origin's files, or from `seed` when it has none."""
    causal = causal_skeleton(origin.config)
    body = f"{causal.base_model_prefix}."
    head = f"{_module_name(causal, causal.get_output_embeddings())}."
    embedding = f"{_module_name(causal, causal.get_input_embeddings())}.weight"
    wanted = {name: tuple(tensor.shape) for name, tensor in causal.state_dict().items()}
    source = _source(causal_class(origin.config), origin, seed, LANGUAGE_PATH)
    given = {
        ours: name
        for name in source.names()
        if not COMPUTED.search(name)
        and (ours := _current_name(name, origin.layout, wanted=wanted, body=body, head=head)) is not None
    }
    if causal.config.tie_word_embeddings:
        _check_tie(source, given, f"{head}weight", embedding)
        del wanted[f"{head}weight"]
        given.pop(f"{head}weight", None)
    tensors = _Tensors(source, given, wanted, "language model", origin, LANGUAGE_PATH)
    for name in wanted:
        is_head = name.startswith(head)
        ours = (
            f"lm_head.{name.removeprefix(head)}"
            if is_head
            else f"model.language_model.{name.removeprefix(body)}"
        )
        read = tensors.reader(name)
        placement.place(ours, _growing(read, vocabulary) if is_head or name == embedding else read)


def _current_name(name: str, layout: Layout, *, wanted: Collection[str], body: str, head: str) -> str | None:
    """The name in the language model of a file's tensor; None for another part of a whole model.

    Names of a body saved alone lack the root.
    """
    if layout != "language_model":
        root, _, rest = (canonical_in(layout, name) or "").partition(".")
        before = {"language_model": body, "lm_head": head}.get(root)
        return None if before is None else before + rest
    name = OLD_HEAD.sub(head, name)
    return name if name in wanted or name.startswith(body) else body + name


def _check_tie(source: TensorSource, given: dict[str, str], head: str, embedding: str) -> None:
    if (
        head in given
        and embedding in given
        and not torch.equal(source.read(given[head]), source.read(given[embedding]))
    ):
        raise RecipeError.of(
            "the language model's config ties embeddings and head, but its files contain two different ones",
            code="tied-embeddings-differ",
            path=LANGUAGE_PATH,
            found=f"{embedding} and {head} differ",
            hint="set tie_word_embeddings to false in its config.json",
        )


def place_tower(placement: Placement, origin: Origin, *, seed: int) -> None:
    """Fill the vision tower; the text half of a full CLIP or SigLIP checkpoint is left out."""
    tower_class = body_class(origin.config)
    with torch.device("meta"):
        wanted = {
            name: tuple(tensor.shape) for name, tensor in tower_class(origin.config).state_dict().items()
        }
    source = _source(tower_class, origin, seed, TOWER_PATH)
    if origin.layout != "language_model":
        source = Renamed(source, origin.layout, "vision_tower.")
    given = {
        name.removeprefix("vision_model."): name
        for name in source.names()
        if not COMPUTED.search(name) and not OTHER_HALF.match(name)
    }
    tensors = _Tensors(source, given, wanted, "vision tower", origin, TOWER_PATH)
    for name in wanted:
        placement.place(f"model.vision_tower.{name}", tensors.reader(name))


class _Tensors:
    """A part's tensors by its own names: complete, none too many, each of the right shape."""

    def __init__(
        self,
        source: TensorSource,
        given: dict[str, str],
        wanted: dict[str, tuple[int, ...]],
        what: str,
        origin: Origin,
        path: KeyPath,
    ) -> None:
        found = str(origin.folder or "the inline config")
        check_names(wanted, given, what=what, found=found, path=path)
        for name, shape in wanted.items():
            tensor = source.read(given[name])
            check_shape(shape, tensor, what=f"{what} weight {name}", found=found, path=path)
            if not tensor.is_floating_point():
                raise RecipeError.of(
                    f"{what} weight {name} is not floating point",
                    code="weights-not-floating-point",
                    path=path,
                    found=f"{found}: {str(tensor.dtype).removeprefix('torch.')}",
                    hint="use weights in float16, bfloat16 or float32; quantized ones are not read",
                )
        self._source, self._given = source, given

    def reader(self, name: str) -> Callable[[], Tensor]:
        return lambda: self._source.read(self._given[name])


def _growing(read: Callable[[], Tensor], vocabulary: Vocabulary) -> Callable[[], Tensor]:
    return lambda: with_new_rows(read(), vocabulary)


def _source(model_class: type[PreTrainedModel], origin: Origin, seed: int, path: KeyPath) -> TensorSource:
    if origin.folder is None:
        return _random_tensors(model_class, origin.config, seed)
    return open_checkpoint(origin.folder, path)


def _random_tensors(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> TensorSource:
    """The weights that transformers draws for a config, from this seed only."""
    with private_randomness():
        torch.default_generator.manual_seed(seed)
        return TensorsInMemory(model_class(config).state_dict())


@contextlib.contextmanager
def private_randomness() -> Iterator[None]:
    """Leave every random stream as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def _module_name(root: nn.Module, wanted: nn.Module) -> str:
    names = (name for name, module in root.named_modules() if module is wanted)
    return str(next(names))
