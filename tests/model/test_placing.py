"""A quantized language model: the numbers it computes, what stays whole, and the adapters it trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import freeze_model, inject_lora, is_adapter, write_adapter
from llava_recipes.model.placing import fill_quantized, find_obstacle, is_quantized
from llava_recipes.model.weight_names import canonical_name, canonical_parameters
from llava_recipes.model.weights import load_trained, trainable_state, write_trained
from llava_recipes.plan.trainable import quantized_bytes, quantized_weights
from llava_recipes.recipe.schema import Lora, Quantization
from llava_recipes.versions import recompute_activations
from tests.model.plans import plan_of
from tests.processes import ROOT, run_process

bnb = pytest.importorskip("bitsandbytes")

CHOICES = [
    Quantization(bits=4),
    Quantization(bits=4, type="fp4", double_quant=False),
    Quantization(bits=8),
]
IDS = torch.arange(5, 17).view(1, 12)
NO_IMAGE = torch.zeros_like(IDS, dtype=torch.bool)

each_choice = pytest.mark.parametrize("choice", CHOICES, ids=str)


def quantized(choice: Quantization, dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
    plan = plan_of()
    language = plan.language_model.model_copy(update={"quantization": choice})
    return assemble(plan.model_copy(update={"language_model": language}), dtype=dtype).model


def whole() -> LlavaForConditionalGeneration:
    return assemble(plan_of(), dtype=torch.float32).model


def with_adapters(choice: Quantization, lora: Lora) -> LlavaForConditionalGeneration:
    model = quantized(choice)
    targets = inject_lora(model, lora, seed=1)
    freeze_model(model, freeze="all", trainable=("projector",), lora=lora, targets=targets)
    return model


def logits(model: LlavaForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, is_image=NO_IMAGE).logits
    return found


def restored(layer: nn.Module) -> torch.Tensor:
    """A layer's weight, whole again."""
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        tensor: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[union-attr]
        return tensor
    return weight.data.float() * weight.SCB[:, None] / 127  # type: ignore[union-attr, operator, index]


@each_choice
def test_every_linear_layer_of_the_language_model_and_no_other(choice: Quantization) -> None:
    model, reference = quantized(choice), canonical_parameters(whole())
    small = {canonical_name(f"{name}.weight") for name, layer in model.named_modules() if is_quantized(layer)}
    assert len(small) == 2 * 7
    assert small == set(quantized_weights({name: tuple(value.shape) for name, value in reference.items()}))
    parameters = canonical_parameters(model)
    assert parameters.keys() == reference.keys()
    for name, parameter in parameters.items():
        if name in small:
            assert not parameter.is_floating_point() and not parameter.requires_grad
        else:
            assert torch.equal(parameter, reference[name]), name


@each_choice
def test_each_layer_holds_its_own_weight_of_the_file(choice: Quantization) -> None:
    model, reference = quantized(choice), dict(whole().named_modules())
    for name, layer in model.named_modules():
        if is_quantized(layer):
            exact = reference[name].weight
            assert isinstance(exact, torch.Tensor)
            assert torch.equal(restored(layer), restored(filled(choice, exact.detach()))), name


@each_choice
def test_quantized_weights_are_as_near_as_they_can_be(choice: Quantization) -> None:
    exact = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    shares = exact.reshape(-1, 128 if choice.bits == 8 else 64)
    error = (restored(filled(choice, exact)).detach().reshape(shares.shape) - shares).abs().amax(1)
    # Half of the widest gap between values, as a share of the largest weight of a row or block.
    gap = 0.5 / 127 if choice.bits == 8 else 1 / 6
    assert (error <= 1.1 * gap * shares.abs().amax(1)).all()


def filled(choice: Quantization, exact: torch.Tensor) -> nn.Module:
    """A layer of its own with this weight."""
    layer: nn.Module = (
        bnb.nn.Linear4bit(
            *exact.shape[::-1],
            bias=False,
            quant_type=choice.type,
            compress_statistics=choice.double_quant,
        )
        if choice.bits == 4
        else bnb.nn.Linear8bitLt(*exact.shape[::-1], bias=False, has_fp16_weights=False)
    )
    fill_quantized(layer, exact, torch.float32)
    return layer


@each_choice
def test_the_logits_are_those_of_the_restored_weights(choice: Quantization) -> None:
    model, reference = quantized(choice), whole()
    plain = dict(reference.named_modules())
    expected_before = logits(reference)
    for name, layer in model.named_modules():
        if is_quantized(layer):
            plain[name].weight.data.copy_(restored(layer))
    model.train()
    # In 8 bits the inputs are rounded as well.
    tolerance = 0.1 if choice.bits == 8 else 1e-4
    torch.testing.assert_close(logits(model), logits(reference), rtol=0, atol=tolerance)
    assert (logits(model) - expected_before).abs().max() > tolerance / 10


def test_an_evaluation_leaves_training_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = quantized(CHOICES[0])
    before = logits(model.train())
    assert torch.equal(logits(model.eval()), before)
    assert torch.equal(logits(model.train()), before)


@pytest.mark.parametrize("choice", CHOICES[:2], ids=str)
def test_the_bytes_are_those_that_a_plan_counts(choice: Quantization) -> None:
    layer = bnb.nn.Linear4bit(
        512, 256, bias=False, quant_type=choice.type, compress_statistics=choice.double_quant
    ).to("cpu")
    state = layer.weight.quant_state
    scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
    held = sum(tensor.numel() * tensor.element_size() for tensor in (layer.weight.data, *scales))
    shapes = {"language_model.x.weight": (256, 512)}
    assert held == quantized_bytes(choice, shapes, shapes)


def test_the_bytes_of_8_bits() -> None:
    layer = bnb.nn.Linear8bitLt(512, 256, bias=False, has_fp16_weights=False).to("cpu")
    held = layer.weight.data.numel() + 4 * layer.weight.SCB.numel()
    shapes = {"language_model.x.weight": (256, 512)}
    assert held == quantized_bytes(Quantization(bits=8), shapes, shapes)


@pytest.mark.parametrize(
    ("choice", "use_dora"), [*((choice, False) for choice in CHOICES), (CHOICES[0], True)], ids=str
)
def test_adapters_learn_and_recompute(choice: Quantization, use_dora: bool) -> None:
    losses = []
    for recompute in (False, True):
        model = with_adapters(choice, Lora(r=4, dropout=0.0, use_dora=use_dora))
        frozen = {
            name: parameter.detach().clone()
            for name, parameter in canonical_parameters(model).items()
            if not parameter.requires_grad
        }
        model.train()
        if recompute:
            recompute_activations(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        run = []
        for _ in range(4):
            loss = model(input_ids=IDS, is_image=NO_IMAGE, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.append(loss.item())
        assert run[-1] < run[0] - 0.5
        now = canonical_parameters(model)
        assert all(torch.equal(now[name], value) for name, value in frozen.items())
        losses.append(run)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@each_choice
def test_adapters_are_peft_s_own_for_quantized_layers(choice: Quantization) -> None:
    model = with_adapters(choice, Lora(r=4))
    kinds = {type(module) for module in model.modules() if type(module).__module__ == "peft.tuners.lora.bnb"}
    assert {kind.__name__ for kind in kinds} == {"Linear4bit" if choice.bits == 4 else "Linear8bitLt"}
    assert not hasattr(model, "is_loaded_in_4bit") and not hasattr(model, "is_loaded_in_8bit")


def test_what_is_saved_goes_back_in(tmp_path: Path) -> None:
    lora = Lora(r=4, dropout=0.0)
    model = with_adapters(CHOICES[0], lora)
    for name, parameter in canonical_parameters(model).items():
        if is_adapter(name):
            parameter.data.add_(0.05)
    state = trainable_state(model)
    assert {name.split(".")[0] for name in state if not is_adapter(name)} == {"projector"}
    write_trained(state, tmp_path)
    again = with_adapters(CHOICES[0], lora)
    assert not torch.equal(logits(again), logits(model))
    assert set(load_trained(again, tmp_path)) == set(state)
    assert torch.equal(logits(again), logits(model))


def test_adapters_and_whole_weights_are_not_laid_over_quantized_ones(tmp_path: Path) -> None:
    lora = Lora(r=4)
    state = trainable_state(with_adapters(CHOICES[0], lora))
    write_trained(state, tmp_path)
    write_adapter(state, tmp_path, lora, base="base", num_layers=2)
    with pytest.raises(RecipeError, match="cannot be merged into a quantized language model"):
        load_trained(quantized(CHOICES[0]), tmp_path)
    # The same adapters fit the whole model.
    assert load_trained(whole(), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    name = "language_model.layers.0.mlp.up_proj.weight"
    write_trained({name: canonical_parameters(whole())[name].detach()}, other)
    with pytest.raises(RecipeError, match="is quantized in the model"):
        load_trained(quantized(CHOICES[0]), other)


def test_half_precision_computes_in_half_precision() -> None:
    model = quantized(CHOICES[0], torch.bfloat16)
    layers = [layer for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    assert torch.isfinite(logits(model).float()).all()


@each_choice
def test_it_works_here(choice: Quantization) -> None:
    assert find_obstacle(choice) is None


def test_a_library_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert find_obstacle(CHOICES[0]) is not None


def test_a_model_without_quantization_does_not_load_the_library() -> None:
    code = (
        "import sys, torch\n"
        "from llava_recipes.model.assemble import assemble\n"
        "from tests.model.plans import plan_of\n"
        "assemble(plan_of(), dtype=torch.float32)\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    done = run_process([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
