"""Projector and trained weights: read, refused, written whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble, build_skeleton
from llava_recipes.model.lora import freeze_model
from llava_recipes.model.weight_names import canonical_name, canonical_parameters, transformers_name
from llava_recipes.model.weights import (
    load_projector,
    load_trained,
    read_projector_weights,
    trainable_state,
    write_projector,
    write_trained,
)
from tests.model.plans import GOLDEN, INLINE_CLIP, plan_of

STAGE1 = GOLDEN / "06_stage1"


@pytest.mark.parametrize(("run", "kind"), [("base", "mlp2x_gelu"), ("linear", "linear")])
def test_type_and_sizes_follow_from_the_tensors(run: str, kind: str) -> None:
    weights = read_projector_weights(STAGE1 / run / "mm_projector.bin")
    assert (weights.type, weights.vision_hidden, weights.language_hidden) == (kind, 32, 32)
    safe = read_projector_weights(STAGE1 / run / "init.safetensors")
    assert safe.shapes() == weights.shapes()


def test_an_empty_file_is_an_identity(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    assert read_projector_weights(tmp_path / "none.safetensors").type == "identity"


@pytest.mark.parametrize(
    "prefix", ["model.mm_projector.", "mm_projector.", "projector.", "base_model.model.model.mm_projector."]
)
def test_known_prefixes(tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}0.weight": torch.ones(8, 4), f"{prefix}0.bias": torch.ones(8)}
    torch.save(tensors, tmp_path / "p.bin")
    weights = read_projector_weights(tmp_path / "p.bin")
    assert weights.type == "mlp1x_gelu" and (weights.vision_hidden, weights.language_hidden) == (4, 8)
    assert list(weights.tensors) == ["projector.0.weight", "projector.0.bias"]


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.mm_projector.0.weight": torch.ones(8, 4)},
        {"model.mm_projector.0.bias": torch.ones(8)},
        {"model.mm_projector.0.weight": torch.ones(0), "model.mm_projector.0.bias": torch.ones(0)},
        {"model.mm_projector.1.weight": torch.ones(8, 4), "model.mm_projector.1.bias": torch.ones(8)},
        {"model.mm_projector.weight": torch.ones(8, 4), "model.mm_projector.bias": torch.ones(7)},
        {"model.embed_tokens.weight": torch.ones(8, 4)},
    ],
    ids=["no bias", "no weight", "empty", "no layer 0", "sizes", "foreign"],
)
def test_what_is_no_projector_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, tmp_path / "p.bin")
    with pytest.raises(RecipeError):
        read_projector_weights(tmp_path / "p.bin")


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_a_file_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model.mm_projector.weight": _Harmful()}, tmp_path / "p.bin")
    with pytest.raises(RecipeError, match="more than tensors"):
        read_projector_weights(tmp_path / "p.bin")
    (tmp_path / "q.bin").write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(RecipeError):
        read_projector_weights(tmp_path / "q.bin")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["p.bin", "p.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_a_broken_or_missing_file_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError):
        read_projector_weights(tmp_path / name)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = (STAGE1 / "base" / "mm_projector.bin").read_bytes()
    (tmp_path / "p.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecipeError, match="cannot read weights"):
        read_projector_weights(tmp_path / "p.bin")


def test_a_projector_that_does_not_fit_shows_both_shapes() -> None:
    model = assemble(plan_of(projector="linear"), dtype=torch.float32).model
    with pytest.raises(RecipeError) as caught:
        load_projector(model, STAGE1 / "base" / "mm_projector.bin")
    problem = caught.value.problems[0]
    assert problem.path == ("model", "projector", "init_from")
    assert "mlp2x_gelu" in str(problem.found) and "projector.2.weight [32, 32]" in str(problem.found)
    assert "projector.weight [32, 32]" in str(problem.hint)


@pytest.mark.parametrize("run", ["base", "linear"])
def test_the_projector_is_written_as_the_original_writes_it(tmp_path: Path, run: str) -> None:
    original = torch.load(STAGE1 / run / "mm_projector.bin", weights_only=True)
    kind = "linear" if run == "linear" else "mlp2x_gelu"
    plan = plan_of(projector=kind, init_from=STAGE1 / run / "mm_projector.bin")
    model = assemble(plan, dtype=torch.float32).model
    freeze_model(model, freeze="all", trainable=("projector",))
    binary, safe = write_projector(trainable_state(model), tmp_path)
    written = torch.load(binary, weights_only=True)
    assert list(written) == list(original)
    for name, tensor in load_file(safe).items():
        assert torch.equal(tensor, original[name]) and torch.equal(written[name], original[name])
        assert tensor.dtype == original[name].dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mm_projector.bin",
        "mm_projector.safetensors",
    ]


def test_an_empty_projector_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not gathered"):
        write_projector({"projector.weight": torch.empty(0), "projector.bias": torch.ones(4)}, tmp_path)
    with pytest.raises(AssertionError, match="no trained weights"):
        write_projector({"language_model.norm.weight": torch.ones(4)}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_trained_weights_come_back(tmp_path: Path) -> None:
    plan = plan_of(tower_config=INLINE_CLIP, projector="linear")
    first, second = (assemble(plan, dtype=torch.float32).model for _ in range(2))
    freeze_model(first, freeze="all", trainable=("projector", "language_model.layers.1"))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    state = trainable_state(first)
    names = load_trained(second, write_trained(state, tmp_path).parent)
    assert set(names) == set(state) and len(names) == 11
    for name, parameter in canonical_parameters(second).items():
        assert torch.equal(parameter, canonical_parameters(first)[name]), name


def test_a_run_that_trained_the_projector_alone_hands_it_on(tmp_path: Path) -> None:
    plan = plan_of(init_from=STAGE1 / "base" / "mm_projector.bin")
    first, second = assemble(plan, dtype=torch.float32).model, assemble(plan_of(), dtype=torch.float32).model
    freeze_model(first, freeze="all", trainable=("projector",))
    state = trainable_state(first)
    write_projector(state, tmp_path)
    assert set(load_trained(second, tmp_path)) == set(state)
    for name, tensor in state.items():
        assert torch.equal(canonical_parameters(second)[name], tensor)
    with pytest.raises(RecipeError, match="no trained weights here"):
        load_trained(second, tmp_path / "nothing")


def test_the_state_is_a_copy() -> None:
    model = assemble(plan_of(projector="linear"), dtype=torch.float32).model
    freeze_model(model, freeze="all", trainable=("projector",))
    state = trainable_state(model)
    with torch.no_grad():
        model.model.multi_modal_projector.weight.zero_()
    assert state["projector.weight"].any()


def test_trained_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = assemble(plan_of(projector="linear"), dtype=torch.float32).model
    save_file(
        {"projector.weight": torch.ones(3, 3), "projector.7.bias": torch.ones(3)},
        tmp_path / "trained.safetensors",
    )
    with pytest.raises(RecipeError) as caught:
        load_trained(model, tmp_path)
    assert len(caught.value.problems) == 2


def test_names_go_both_ways() -> None:
    model = build_skeleton(plan_of())
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in canonical_parameters(model)} == {
        "vision_tower",
        "projector",
        "language_model",
        "lm_head",
    }
    assert [transformers_name(canonical_name(name)) for name in names] == names
    nested = "model.vision_tower.vision_model.embeddings.class_embedding"
    assert canonical_name(nested) == "vision_tower.embeddings.class_embedding"
    assert transformers_name(canonical_name(nested), nested_tower=True) == nested
    with pytest.raises(ValueError, match="mm_projector"):
        canonical_name("model.mm_projector.weight")


def test_freezing_splits_the_model() -> None:
    model = assemble(plan_of(), dtype=torch.float32).model
    decision = freeze_model(model, freeze="all", trainable=("projector",))
    trains = {name for name, parameter in canonical_parameters(model).items() if parameter.requires_grad}
    assert trains == set(decision.trainable)
    assert sorted(trains) == [
        "projector.0.bias",
        "projector.0.weight",
        "projector.2.bias",
        "projector.2.weight",
    ]
    freeze_model(model, freeze=("vision_tower",), trainable=())
    assert all(
        parameter.requires_grad != name.startswith("vision_tower.")
        for name, parameter in canonical_parameters(model).items()
    )


def test_a_glob_that_matches_nothing_and_nothing_trainable_are_refused() -> None:
    model = build_skeleton(plan_of())
    with pytest.raises(RecipeError, match='glob "multi_modal_projector" in `trainable` matches no module'):
        freeze_model(model, freeze="all", trainable=("multi_modal_projector",))
    with pytest.raises(RecipeError, match="nothing trains in this stage"):
        freeze_model(model, freeze="all", trainable=())
