"""Recipes over recipes: what merges, what is replaced, whose line an error shows, and what is refused."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.recipe.extends import MAX_FILES, MAX_LEVELS, extend, lay_over
from llava_recipes.recipe.load import LoadedRecipe, load_recipe
from llava_recipes.recipe.source import MAX_VALUES, Document, parse_source
from tests.laws import examples

ROOT = Path(__file__).parent.parent.parent
BASES = sorted((ROOT / "recipes" / "base").glob("*.yaml"))
BASE = """\
version: 1
name: base
env: [LLAVA_DATA]
vars:
  data: ${LLAVA_DATA}/llava
  rate: 1e-3
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower:
    source: openai/clip-vit-large-patch14-336
    select_layer: -2
stages:
  - name: pretrain
    trainable: [projector]
    data:
      template: plain
      sources:
        - {annotations: "${data}/a.json", images: "${data}/images"}
        - {annotations: b.json}
    train: {num_train_epochs: 1, learning_rate: "${rate}", save_total_limit: 1}
    deepspeed: {zero_optimization: {stage: 2}, bf16: {enabled: auto}}
    output_dir: runs/pretrain
  - name: finetune
    trainable: [projector, language_model]
    data: {template: v1, sources: [{annotations: c.json}]}
    train: {max_steps: 5, learning_rate: 2e-5}
    output_dir: runs/finetune
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the base in `base/base.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAVA_DATA", "/data")
    write("base/base.yaml", BASE)
    return tmp_path


def write(file: str, text: str) -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")
    return file


def load(text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(write("child.yaml", text), overrides)


def problems(text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return caught.value.problems


def place(mark: Mark | None) -> tuple[str, int]:
    assert mark is not None
    return mark.file, mark.line


CHILD = "extends: base/base.yaml\n"


def test_a_child_that_says_nothing_is_its_parent() -> None:
    assert load(CHILD).recipe == load_recipe("base/base.yaml").recipe


def test_mappings_merge_and_lists_are_replaced() -> None:
    stage = "stages: [{name: pretrain, data: {sources: [{annotations: z.json}], max_length: 9}}]\n"
    values: Any = load(f"{CHILD}model: {{vision_tower: {{select_layer: -1}}}}\n{stage}").values
    assert values["model"]["vision_tower"] == {
        "source": "openai/clip-vit-large-patch14-336",
        "select_layer": -1,
    }
    assert values["stages"][0]["data"] == {
        "template": "plain",
        "sources": [{"annotations": "z.json"}],
        "max_length": 9,
    }


def test_stages_merge_by_name_and_new_ones_come_last() -> None:
    more = (
        "  - {name: third, trainable: [projector], data: {template: v1, sources: [{annotations: d.json}]},"
        " train: {max_steps: 1, learning_rate: 1}, output_dir: runs/third}\n"
    )
    recipe = load(
        f"{CHILD}stages:\n{more}  - {{name: finetune, output_dir: runs/f}}\n  - name: pretrain\n"
    ).recipe
    assert [stage.name for stage in recipe.stages] == ["pretrain", "finetune", "third"]
    assert [stage.output_dir for stage in recipe.stages] == ["runs/pretrain", "runs/f", "runs/third"]


def test_other_kinds_of_value_take_each_others_place() -> None:
    recipe = load(f"{CHILD}stages: [{{name: pretrain, deepspeed: zero3}}]\n").recipe
    assert recipe.stages[0].deepspeed == "zero3"
    recipe = load(f"{CHILD}stages: [{{name: pretrain, deepspeed: {{bf16: {{enabled: true}}}}}}]\n").recipe
    assert recipe.stages[0].deepspeed == {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}


def test_later_parents_are_laid_over_earlier_ones_and_the_child_over_all() -> None:
    write("one.yaml", "extends: base/base.yaml\nname: one\nvars: {rate: 1, data: one}\n")
    write("two.yaml", "name: two\nvars: {rate: 2}\n")
    loaded = load("extends: [one.yaml, two.yaml]\nversion: 1\n")
    assert (loaded.recipe.name, loaded.recipe.vars) == ("two", {"rate": 2, "data": "one"})
    assert load("extends: [two.yaml, one.yaml]\n").recipe.name == "one"
    assert load("extends: [two.yaml, one.yaml]\nname: child\n").recipe.name == "child"
    assert load("extends: [two.yaml, one.yaml]\nname: child\n", "name=set").recipe.name == "set"


def test_a_childs_variable_reaches_what_its_parents_wrote() -> None:
    recipe = load(CHILD + "vars: {data: ./mine, rate: 5}\n").recipe
    assert recipe.stages[0].data.sources[0].annotations == "./mine/a.json"
    assert recipe.stages[0].train.learning_rate == 5


def test_a_key_takes_the_place_of_the_inherited_one_that_it_contradicts() -> None:
    stages = (
        "  - {name: pretrain, train: {max_steps: 7}}\n  - {name: finetune, train: {num_train_epochs: 2}}\n"
    )
    child = f"{CHILD}stages:\n{stages}"
    pretrain, finetune = load(child).recipe.stages
    assert (pretrain.train.num_train_epochs, pretrain.train.max_steps) == (None, 7)
    assert (finetune.train.num_train_epochs, finetune.train.max_steps) == (2, None)
    tower = load(
        CHILD + "model: {vision_tower: {config: {model_type: clip_vision_model}}}\n"
    ).recipe.model.vision_tower
    assert (tower.source, tower.select_layer) == (None, -2)


def test_two_keys_of_one_file_that_contradict_each_other_are_reported() -> None:
    (problem,) = problems(CHILD + "stages: [{name: pretrain, train: {max_steps: 7, num_train_epochs: 2}}]\n")
    assert "are both given" in problem.message


def test_null_takes_away_what_may_be_absent() -> None:
    assert (
        load(CHILD + "stages: [{name: pretrain, train: {save_total_limit: null}}]\n")
        .recipe.stages[0]
        .train.save_total_limit
        is None
    )
    (problem,) = problems(CHILD + "stages: [{name: pretrain, deepspeed: null}]\n")
    assert (problem.message, problem.hint) == (
        "`deepspeed` has no value",
        "write `none` to train without DeepSpeed",
    )


def test_every_value_keeps_its_place() -> None:
    loaded = load(
        "# a comment\nname: child\nextends: base/base.yaml\nstages:\n  - {name: finetune, output_dir: f}\n"
    )
    assert place(loaded.locate(("name",))) == ("child.yaml", 2)
    assert place(loaded.locate(("model", "vision_tower", "source"))) == ("base/base.yaml", 10)
    assert place(loaded.locate(("stages", 1, "output_dir"))) == ("child.yaml", 5)
    assert place(loaded.locate(("stages", 1, "train", "max_steps"))) == ("base/base.yaml", 26)
    assert place(loaded.locate(("stages", 0, "trainable", 0))) == ("base/base.yaml", 14)
    loaded = load(CHILD, "stages.finetune.output_dir=set")
    assert place(loaded.locate(("stages", 1, "output_dir"))) == ("--set stages.finetune.output_dir=set", 0)


def test_an_error_in_an_inherited_value_is_shown_in_the_parent() -> None:
    write("base/base.yaml", BASE.replace("select_layer: -2", "select_layer: two"))
    first, second = problems(CHILD + "name: a b\n")
    assert place(first.mark) == ("child.yaml", 2)
    assert place(second.mark) == ("base/base.yaml", 11)
    assert second.mark is not None and second.mark.text == "    select_layer: two"
    assert load(CHILD + "model: {vision_tower: {select_layer: -1}}\n")


def test_a_replaced_fault_leaves_no_trace_but_a_broken_file_is_reported() -> None:
    write("base/base.yaml", BASE.replace("name: pretrain", "name: pretrain\n    name: again"))
    (problem,) = problems(CHILD)
    assert problem.message == "the key `name` is repeated"
    write("base/base.yaml", BASE.replace("version: 1", "version: [1"))
    (problem,) = problems(CHILD)
    assert place(problem.mark)[0] == "base/base.yaml"


def test_parents_are_found_from_the_file_that_names_them(folder: Path) -> None:
    write("a/b/child.yaml", "extends: ../middle.yaml\n")
    write("a/middle.yaml", f"extends: {folder}/base/base.yaml\nname: middle\n")
    os.symlink(folder / "a", folder / "link")
    for file in ("a/b/child.yaml", str(folder / "a/b/child.yaml"), "./link/b/child.yaml"):
        assert load_recipe(file).recipe.name == "middle"


def test_a_link_is_followed_before_its_dots(folder: Path) -> None:
    """`link/..` is the parent of what the link leads to."""
    write("far/away/child.yaml", "extends: ../beside.yaml\n")
    write("far/beside.yaml", "extends: ../base/base.yaml\nname: far\n")
    write("beside.yaml", "extends: base/base.yaml\nname: near\n")
    os.symlink(folder / "far" / "away", folder / "link")
    assert load_recipe("link/child.yaml").recipe.name == "far"


def test_a_parent_extended_twice_counts_twice_and_is_fine() -> None:
    write("one.yaml", "extends: base/base.yaml\nname: one\n")
    assert load("extends: [base/base.yaml, one.yaml, one.yaml]\n").recipe.name == "one"


def test_circles_show_their_chain(folder: Path) -> None:
    write("base/one.yaml", "extends: ./two.yaml\n")
    write("base/two.yaml", "extends: [base.yaml, one.yaml]\n")
    (problem,) = problems("extends: base/one.yaml\n")
    assert problem.message == "the files extend each other"
    assert problem.found == "base/one.yaml → base/two.yaml → base/one.yaml"
    assert place(problem.mark) == ("base/two.yaml", 1)
    os.symlink(folder / "child.yaml", folder / "again.yaml")
    assert problems("extends: again.yaml\n")[0].message == "the file extends itself"


def test_every_parent_that_cannot_be_read_is_reported_with_the_rest() -> None:
    found = problems("extends: [none.yaml, base/base.yaml, http://x/y]\nnam: x\nvars: [1]\n")
    assert [problem.message for problem in found] == [
        "`extends` names a file that doesn't exist",
        "`extends` needs a file on this machine, not a web address",
        "unknown key `nam` in the recipe",
        "`vars` needs a mapping, not a list",
    ]


def test_limits_on_levels_files_and_bytes() -> None:
    for level in range(MAX_LEVELS + 2):
        write(f"l{level}.yaml", f"extends: l{level + 1}.yaml\n")
    assert "levels deep" in problems("extends: l0.yaml\n")[0].message
    for level in range(6):
        write(f"l{level}.yaml", f"extends: [{', '.join([f'l{level + 1}.yaml'] * 9)}]\n")
    write("l6.yaml", "name: x\n")
    started_s = time.process_time()
    assert problems("extends: l0.yaml\n")[0].message == f"the recipe extends more than {MAX_FILES} files"
    write("l0.yaml", f"name: x\n{'#' * 400_000}\n")
    assert "bytes in total" in problems("extends: [l0.yaml, l0.yaml, l0.yaml]\n")[-1].message
    write("l0.yaml", f"name: x\nmodel: [{', '.join(['1'] * (MAX_VALUES // 2))}]\n")
    assert "values in total" in problems("extends: [l0.yaml, l0.yaml]\n")[-1].message
    assert time.process_time() - started_s < 5


def test_what_is_no_ordinary_file_is_not_opened() -> None:
    os.mkfifo("pipe.yaml")
    (problem,) = problems("extends: pipe.yaml\n")
    assert problem.message == "`extends` names something that isn't an ordinary file"


def test_a_variable_of_a_parent_need_not_be_used_by_every_child() -> None:
    sources = "{sources: [{annotations: z.json}]}"
    child = f"{CHILD}stages: [{{name: pretrain, data: {sources}}}]\n"
    assert load(child)
    assert problems(child + "vars: {data: x}\n")[0].message == "the variable `data` is never used"


def test_extends_is_not_for_the_command_line() -> None:
    (problem,) = problems(CHILD, "extends=other.yaml")
    assert problem.message == "`--set` cannot set `extends`"


def test_an_override_fixes_what_a_parent_has_wrong() -> None:
    write("base/base.yaml", BASE.replace("max_steps: 5", "max_steps: .inf"))
    assert problems(CHILD)[0].message == "infinity and NaN are not allowed in a recipe"
    assert load(CHILD, "stages.finetune.train.max_steps=3")


@pytest.mark.parametrize("file", BASES, ids=lambda file: file.stem)
def test_a_base_alone_says_what_is_missing(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert caught.value.problems
    assert all("needs" in problem.message for problem in caught.value.problems)


# The environment


def test_declared_names_are_filled_in() -> None:
    loaded = load(CHILD)
    assert loaded.recipe.stages[0].data.sources[0].images == "/data/llava/images"
    assert loaded.document.uses[("stages", 0, "data", "sources", 0, "images")] == ("data", "LLAVA_DATA")


def test_a_name_that_is_not_set_is_reported_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_DATA")
    (problem,) = problems(CHILD)
    assert problem.message == "the environment variable `LLAVA_DATA` is not set"
    assert place(problem.mark) == ("base/base.yaml", 5)
    assert (
        load(CHILD, "vars.LLAVA_DATA=/here").recipe.stages[0].data.sources[0].images == "/here/llava/images"
    )
    assert load(CHILD + "vars: {LLAVA_DATA: /there}\n")
    assert load(CHILD + "vars: {data: /there}\n")


def test_declarations_of_parents_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_OUT", "runs/out")
    loaded = load(CHILD + 'env: [LLAVA_OUT]\nstages: [{name: pretrain, output_dir: "${LLAVA_OUT}"}]\n')
    assert loaded.recipe.env == ("LLAVA_DATA", "LLAVA_OUT")
    assert loaded.recipe.stages[0].output_dir == "runs/out"
    assert place(loaded.locate(("env", 1))) == ("child.yaml", 2)


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("0x10", 16)])
def test_a_whole_value_is_read_as_what_is_wanted(
    text: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPS", text)
    child = (
        CHILD
        + 'env: [STEPS]\nstages: [{name: finetune, train: {max_steps: "${STEPS}"}, output_dir: "${STEPS}"}]\n'
    )
    stage = load(child).recipe.stages[1]
    assert (stage.train.max_steps, stage.output_dir) == (value, text)


@pytest.mark.parametrize("text", ["${data}", "$${data}", "a: [b", "yes", "1e400", "*", "\udcff", "a\x01"])
def test_any_environment_is_text_or_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference inside an environment variable is not followed."""
    monkeypatch.setenv("LLAVA_DATA", text)
    try:
        loaded = load(CHILD)
    except RecipeError as error:
        assert text in ("\udcff", "a\x01")
        assert all("LLAVA_DATA" in problem.message for problem in error.problems)
    else:
        assert loaded.recipe.stages[0].data.sources[0].images == f"{text}/llava/images"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "key_password",
        "MY_SECRET_THING",
        "PASSWORD",
        "SSH_KEY",
        "GH_TOKEN_2",
        "X_APIKEY",
    ],
)
def test_a_secret_is_neither_read_nor_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "open-sesame")
    (problem,) = problems(CHILD + f"env: [{name}]\nname: {'${' + name + '}'}\n")
    assert problem.message.startswith(f"`{name}` looks like a secret")
    assert "sesame" not in str(problem)


@pytest.mark.parametrize("name", ["TOKENIZER", "MONKEY", "KEYBOARD", "DATA_DIR", "_", "BYPASS"])
def test_other_names_are_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value")
    assert load(CHILD + f"env: [{name}]\nname: {'${' + name + '}'}\n").recipe.name == "value"


# Laws


def document(values: object, file: str) -> Document:
    return parse_source(yaml.safe_dump(values), file)


def mapping(**inner: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """A mapping with some of its keys. What is a mapping in one file is one in every other."""
    return st.fixed_dictionaries({}, optional=inner)


leaves = st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
trees = mapping(a=leaves, b=mapping(a=leaves, c=mapping(d=leaves)))
recipes = mapping(
    model=trees,
    vars=trees,
    env=st.lists(st.sampled_from("uvw"), max_size=3, unique=True),
    stages=st.lists(
        st.builds(lambda name, rest: {"name": name, **rest}, st.sampled_from("pqr"), trees),
        max_size=3,
        unique_by=lambda stage: str(stage["name"]),
    ),
)


@examples(200)
@given(recipes.filter(bool), recipes.filter(bool), recipes.filter(bool))
def test_laying_over_is_associative_and_marks_follow(a: object, b: object, c: object) -> None:
    low, middle, high = document(a, "a"), document(b, "b"), document(c, "c")
    left = lay_over(lay_over(low, middle), high)
    right = lay_over(low, lay_over(middle, high))
    assert left.root == right.root
    assert left.value_marks == right.value_marks
    for path, mark in left.value_marks.items():
        value: Any = left.root
        for segment in path:
            value = value[segment]
        if not isinstance(value, dict | list):
            # What a mark points at, in its own file, is the value itself.
            assert mark.text is not None
            assert mark.text[mark.column - 1 : mark.column - 1 + mark.width] in (repr(value), value)


@examples(100)
@given(recipes.filter(bool))
def test_a_document_over_itself_is_itself(a: object) -> None:
    one = document(a, "a")
    both = lay_over(one, one)
    assert (both.root, both.value_marks, both.key_marks) == (one.root, one.value_marks, one.key_marks)


@examples(200)
@given(st.randoms(use_true_random=False), st.text(max_size=3))
def test_faults_in_any_file_of_a_family_are_reported(chance: random.Random, junk: str) -> None:
    """A parent or child with letters exchanged: a recipe, or problems that point into one of the two."""
    texts = {
        "base/base.yaml": BASE,
        "child.yaml": f"{CHILD}name: x\nstages:\n  - name: finetune\n    output_dir: f\n",
    }
    file = chance.choice(sorted(texts))
    place = chance.randrange(len(texts[file]))
    texts[file] = texts[file][:place] + junk + texts[file][place + chance.randrange(4) :]
    for name, text in texts.items():
        Path(name).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe("child.yaml")
    except RecipeError as error:
        assert error.problems
        assert {problem.mark.file for problem in error.problems if problem.mark} <= set(texts)
        assert all(problem.mark for problem in error.problems)


def test_without_extends_a_document_is_itself() -> None:
    alone = parse_source(BASE, "f.yaml")
    assert extend(alone) is alone
