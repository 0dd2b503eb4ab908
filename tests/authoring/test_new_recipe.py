"""Templates are recipes, before and after they are filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import templates_folder
from llava_recipes.authoring.new_recipe import TEMPLATES, Wishes, draft_recipe, recipe_name, template_text
from llava_recipes.errors import RecipeError
from llava_recipes.plan.advice import advise
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe

from .conftest import WriteData, captions, talks, text_only


def _plan(text: str) -> Plan:
    return plan_recipe(load_source(text, "draft.yaml"), world_size=1)


def test_every_template_is_offered() -> None:
    assert sorted(TEMPLATES) == sorted(file.stem for file in templates_folder().glob("*.yaml"))
    assert TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_a_recipe_without_a_warning(name: str) -> None:
    loaded = load_source(template_text(name), "draft.yaml")
    plan = plan_recipe(loaded, world_size=8)
    assert advise(loaded.recipe, plan.model, plan.stages) == ()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_its_keys_are_for(name: str) -> None:
    lines = template_text(name).splitlines()
    assert sum("  # " in line for line in lines) >= 5
    assert all(len(line) <= 110 for line in lines)


def test_a_chat_template_beside_the_language_model_is_reported(tmp_path: Path) -> None:
    def notes(template: str) -> list[str]:
        draft = draft_recipe(Wishes(template, language_model=str(tmp_path)), Path("x.yaml"))
        return [note for note in draft.notes if "chat_template: tokenizer" in note]

    assert notes("finetune") == []
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert notes("finetune") == []
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert len(notes("finetune")) == len(notes("custom")) == 1
    assert notes("pretrain") == []
    (tmp_path / "tokenizer_config.json").write_text("no JSON")
    assert notes("finetune") == []
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert str(tmp_path) in notes("finetune")[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_everything_is_filled_in(name: str, write_data: WriteData) -> None:
    file = write_data(captions(7) + talks(3))
    wishes = Wishes(
        template=name,
        language_model="Qwen/Qwen2-7B-Instruct",
        vision_tower="openai/clip-vit-large-patch14",
        data=(file,),
        output_dir="./runs/mine",
        overrides=("stages.0.train.max_steps=9", "model.projector.type=linear"),
    )
    draft = draft_recipe(wishes, Path("my recipe.yaml"))
    plan = _plan(draft.text)
    assert plan.recipe == "my-recipe"
    assert plan.model.language_model.source == "Qwen/Qwen2-7B-Instruct"
    assert plan.model.vision_tower.source == "openai/clip-vit-large-patch14"
    assert plan.model.projector.type == "linear"
    assert plan.stages[0].train.max_steps == 9
    last = plan.stages[-1].data
    assert last.template == "v1"
    assert [(source.annotations, source.images, source.num_samples) for source in last.sources] == [
        (file, "data/images", 10)
    ]
    assert all(stage.output_dir.startswith("./runs/mine") for stage in plan.stages)
    assert "FILE" not in draft.text
    assert "'my recipe.yaml'" in draft.text


def test_stages_take_the_data_that_fits_them(write_data: WriteData) -> None:
    wishes = Wishes(
        "custom", data=(write_data(talks(3), "talks.json"), write_data(captions(4), "captions.json"))
    )
    plan = _plan(draft_recipe(wishes, Path("x.yaml")).text)
    assert [stage.data.sources[0].annotations for stage in plan.stages] == [
        "data/captions.json",
        "data/talks.json",
    ]


def test_a_stage_without_data_is_reported(write_data: WriteData) -> None:
    draft = draft_recipe(Wishes("custom", data=(write_data(talks(3)),)), Path("x.yaml"))
    assert any("stage `pretrain`" in warning for warning in draft.warnings)


def test_the_template_follows_the_data_and_says_so(write_data: WriteData) -> None:
    draft = draft_recipe(Wishes("pretrain", data=(write_data(talks(3)),)), Path("x.yaml"))
    assert _plan(draft.text).stages[0].data.template == "v1"
    assert any("`v1`" in warning and "`plain`" in warning for warning in draft.warnings)


def test_text_alone_has_no_image_folder(write_data: WriteData) -> None:
    draft = draft_recipe(Wishes("finetune", data=(write_data(text_only(3)),)), Path("x.yaml"))
    assert _plan(draft.text).stages[0].data.sources[0].images is None


def test_data_that_is_not_there_yet(write_data: WriteData) -> None:
    write_data([])
    draft = draft_recipe(Wishes("pretrain", data=("later/captions.json",)), Path("x.yaml"))
    source = _plan(draft.text).stages[0].data.sources[0]
    assert (source.images, source.num_samples) == ("later/images", None)
    assert any("doesn't exist yet" in warning for warning in draft.warnings)


def test_image_folders_go_with_their_data(write_data: WriteData) -> None:
    first = write_data(captions(3), "a.json", "one")
    second = write_data(captions(3), "b.json", "two")
    draft = draft_recipe(Wishes("pretrain", data=(first, second), images=("one", "two")), Path("x.yaml"))
    assert [source.images for source in _plan(draft.text).stages[0].data.sources] == ["one", "two"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes("pretrain", images=("x",)), "`--images` needs `--data`"),
        (Wishes("pretrain", data=("a", "b", "c"), images=("x", "y")), "differ in number"),
        (Wishes("pretrain", overrides=("stages.0.trian.max_steps=1",)), "no key `trian`"),
        (Wishes("pretrain", overrides=("a=1", "b=2")), "no key `a`"),
        (Wishes("pretrain", overrides=("stages.0.train.max_steps=[",)), "bad YAML"),
    ],
)
def test_wishes_that_do_not_go_together(wishes: Wishes, message: str) -> None:
    with pytest.raises(RecipeError) as stopped:
        draft_recipe(wishes, Path("x.yaml"))
    assert message in str(stopped.value)


@pytest.mark.parametrize("file", ["a; rm x.yaml", r"\1\g<0>", "# a: b.yaml", "a'b.yaml", "ü 日本.yaml"])
def test_a_strange_file_name_stays_in_its_comment(file: str) -> None:
    text = draft_recipe(Wishes("pretrain"), Path(file)).text
    assert _plan(text).stages
    assert text.count("\n") == template_text("pretrain").count("\n")


@pytest.mark.parametrize("word", ["a\nversion: 2", "a\rb", "a\u2028b", "a\0b", "a\udcffb", "\x1b[31m"])
def test_what_no_recipe_can_hold_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="which a recipe can't contain"):
        draft_recipe(Wishes("pretrain"), Path(word))
    for wishes in (
        Wishes("pretrain", language_model=word),
        Wishes("pretrain", vision_tower=word),
        Wishes("pretrain", data=(word,)),
        Wishes("pretrain", overrides=(f"name={word}",)),
        Wishes("pretrain", output_dir=word),
    ):
        with pytest.raises(RecipeError, match="which a recipe can't contain"):
            draft_recipe(wishes, Path("x.yaml"))


def test_an_override_takes_the_place_of_what_it_contradicts() -> None:
    wishes = Wishes("pretrain", overrides=("stages.pretrain.train.warmup_steps=7",))
    text = draft_recipe(wishes, Path("x.yaml")).text
    assert "warmup_steps: 7" in text
    assert "warmup_ratio" not in text


@pytest.mark.parametrize(
    ("file", "name"),
    [("a b.yaml", "a-b"), ("x/ünï.yaml", "n"), ("...yaml", "my-recipe"), ("v1.5.yaml", "v1.5")],
)
def test_the_name_comes_from_the_file(file: str, name: str) -> None:
    assert recipe_name(Path(file)) == name
