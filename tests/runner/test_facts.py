"""What a plan reads of the files that exist: configs, tokenizers, annotations; nothing in them stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.demo.vocabulary import write_tokenizer
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.recipe.load import LoadedRecipe, load_recipe
from llava_recipes.runner.facts import compile_loaded, gather_facts, plan_recipe, tokenizer_kind
from tests.plan.recipes import LANGUAGE, TOWER, recipe_values, stage_values
from tests.tiny import FIXTURES, stage1_values, write_recipe

RECORD = {"id": "0", "image": "0.jpg", "conversations": [{"from": "human", "value": "<image>"}]}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def load(values: dict[str, Any]) -> LoadedRecipe:
    # JSON is YAML, so the values are a recipe file as they stand.
    Path("recipe.yaml").write_text(json.dumps(values, indent=2), encoding="utf-8")
    return load_recipe("recipe.yaml")


def without_counts(values: dict[str, Any]) -> dict[str, Any]:
    del values["stages"][0]["data"]["sources"][0]["num_samples"]
    return values


def write(path: str, value: object) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def only_problem(values: dict[str, Any]) -> Problem:
    with pytest.raises(RecipeError) as caught:
        plan_recipe(load(values), world_size=1)
    (problem,) = caught.value.problems
    return problem


def test_configs_of_local_folders_are_read() -> None:
    write("llm/config.json", LANGUAGE)
    write("tower/config.json", {"model_type": "clip", "vision_config": TOWER})
    values = recipe_values(model__language_model="./llm", model__vision_tower={"source": "tower"})
    plan = plan_recipe(load(values), world_size=1)
    assert plan.model.sizes is not None
    assert plan.model.sizes.vocab_size == 100
    assert plan.model.sizes.num_image_tokens == 16


@pytest.mark.parametrize("revision", [None, "v2"])
def test_configs_in_the_hub_cache_are_read(revision: str | None) -> None:
    folder = "hf/hub/models--my--llm"
    write(f"{folder}/refs/{revision or 'main'}", "abc123")
    write(f"{folder}/snapshots/abc123/config.json", LANGUAGE)
    choice = {"source": "my/llm", **({"revision": revision} if revision else {})}
    plan = plan_recipe(load(recipe_values(model__language_model=choice)), world_size=1)
    assert plan.model.sizes is not None and plan.model.sizes.vocab_size == 100


def test_a_name_too_long_for_the_hub_cache_is_not_in_it() -> None:
    values = recipe_values(model__language_model=f"my/{'x' * 250}")
    assert gather_facts(load(values)).language_config is None


def test_nothing_at_hand_is_no_error() -> None:
    facts = gather_facts(load(recipe_values(model__language_model="my/llm")))
    assert facts.language_config is None
    assert facts.problems == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"model_type": "llama",\n  oops}', "config.json:2:3: "), ("[1]", "config.json contains a list")],
)
def test_a_broken_config_is_reported_at_its_source(text: str, found: str) -> None:
    write("llm/config.json", text)
    problem = only_problem(recipe_values(model__language_model={"source": "./llm"}))
    assert problem.path == ("model", "language_model", "source")
    assert problem.mark is not None and problem.mark.file == "recipe.yaml"
    assert problem.found is not None and found in problem.found


def test_records_are_counted_where_the_recipe_does_not_say() -> None:
    write("align.json", [RECORD] * 9)
    assert plan_recipe(load(without_counts(stage_values())), world_size=1).stages[0].train.max_steps == 3
    assert gather_facts(load(stage_values())).num_samples == {}


def test_lines_are_counted_in_jsonl() -> None:
    write("align.jsonl", "\n".join([json.dumps(RECORD)] * 5) + "\n")
    values = without_counts(stage_values(data__sources__0__annotations="align.jsonl"))
    assert plan_recipe(load(values), world_size=1).stages[0].data.num_samples == 5


def test_broken_annotations_are_reported() -> None:
    write("align.json", '[{"id": "0"},\n {"id": ]')
    problem = only_problem(without_counts(stage_values()))
    assert problem.mark is not None


def test_deepspeed_files_are_read_and_checked() -> None:
    config = {"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}
    write("ds.json", config)
    plan = plan_recipe(load(stage_values(deepspeed="./ds.json")), world_size=1)
    assert plan.stages[0].deepspeed == {**config, "gradient_clipping": 1.0}
    assert (
        "the DeepSpeed config has no `gradient_clipping`; it clips at 1, as `max_grad_norm` says"
        in plan.notes
    )
    assert plan.stages[0].deepspeed_source == "./ds.json"


@pytest.mark.parametrize("norm", [0.0, 0.3])
def test_a_config_that_says_nothing_of_clipping_takes_the_recipes(norm: float) -> None:
    """DeepSpeed's own default is another one before 0.19.3 than after."""
    values = stage_values(deepspeed={"zero_optimization": {"stage": 2}, "train_batch_size": "auto"})
    values["stages"][0]["train"]["max_grad_norm"] = norm
    plan = plan_recipe(load(values), world_size=1)
    assert plan.stages[0].deepspeed is not None
    assert plan.stages[0].deepspeed["gradient_clipping"] == norm
    does = "it doesn't clip" if norm == 0 else f"it clips at {norm}"
    assert any(f"`gradient_clipping`; {does}, as `max_grad_norm` says" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("text", "message", "found"),
    [
        (None, "DeepSpeed config not found", "no file ./ds.json"),
        ('{\n "a": 1,\nx}', "ds.json is not valid JSON", "ds.json:3:1: "),
        ("3", "ds.json must contain a mapping", "ds.json contains a whole number"),
    ],
)
def test_deepspeed_files_that_cannot_be_used(text: str | None, message: str, found: str) -> None:
    if text is not None:
        write("ds.json", text)
    problem = only_problem(stage_values(deepspeed="./ds.json"))
    assert (problem.path, problem.message) == (("stages", 0, "deepspeed"), message)
    assert problem.mark is not None and problem.mark.line > 1
    assert problem.found is not None and found in problem.found


def test_a_sentencepiece_file_goes_before_tokenizer_json(tmp_path: Path) -> None:
    assert tokenizer_kind(FIXTURES / "tiny_vicuna") == "sentencepiece"
    write_tokenizer(tmp_path / "words")
    assert tokenizer_kind(tmp_path / "words") == "WordLevel"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"model": []}', "{", "[" * 9999])
def test_a_damaged_file_is_of_no_known_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    assert tokenizer_kind(tmp_path) is None


def test_nothing_there_is_of_no_known_kind(tmp_path: Path) -> None:
    assert tokenizer_kind(tmp_path) is None
    assert tokenizer_kind(tmp_path / "nowhere") is None


def test_validate_looks_at_the_tokenizer_on_disk(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "words")
    values = stage1_values(tmp_path / "run")
    language = json.loads((FIXTURES / "tiny_vicuna" / "config.json").read_text())
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values["model"]["language_model"] = {
        "config": {key: language[key] for key in (*kept, "vocab_size")},
        "tokenizer": str(tmp_path / "words"),
    }
    loaded = load_recipe(str(write_recipe(values, tmp_path / "recipe.yaml")))
    warnings = compile_loaded(loaded, world_size=1).warnings
    (found,) = [problem for problem in warnings if "exported" in problem.message]
    assert found.path == ("model", "language_model", "tokenizer")
    assert "`gguf-ready`: llama.cpp's converter cannot read this kind of tokenizer" in found.message
