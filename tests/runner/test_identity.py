"""What may change when a run goes on: every value has a rule, and the rules are kept."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.keys import all_keys
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.recipe.names import DEEPSPEED_KEYS, EXTRA_FIELDS
from llava_recipes.recipe.schema import Train
from llava_recipes.runner import history
from llava_recipes.runner.accepted import AcceptError, read_accepted
from llava_recipes.runner.changes import find_changes
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.hand_off import check_start
from llava_recipes.runner.identity import RULES, rule_of, run_name
from llava_recipes.runner.inputs import contents_of, describe_inputs
from llava_recipes.runner.refusals import check_pieces, other_plan
from llava_recipes.runner.run_folder import read_folder_state, stage_plan
from llava_recipes.train.checkpoints import list_checkpoints, read_facts, seal
from tests.processes import ROOT, run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe, yaml_text
from tests.train.cutting import copy_cut
from tests.train.test_checkpoints import write_checkpoint

OF_NO_PLAN = {"version", "name", "extends", "env", "vars", "model", "stages"}
"""Keys outside a run: the language itself, and whole sections."""


# ---- the table -------------------------------------------------------------------------------------------


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The place of every value of a plan; `[]` for the entries of a list."""
    for name, field in model.model_fields.items():
        yield from _inside(field.annotation, f"{prefix}{name}")


def _inside(shape: Any, place: str) -> Iterator[str]:
    if get_origin(shape) in (types.UnionType, tuple) or str(shape).startswith("typing.Union"):
        suffix = "[]" if get_origin(shape) is tuple else ""
        inner = [each for each in get_args(shape) if each is not type(None) and each is not ...]
        nested = [found for each in inner for found in _inside(each, place + suffix)]
        yield from dict.fromkeys([found for found in nested if found != place + suffix] or [place])
    elif isinstance(shape, type) and issubclass(shape, BaseModel):
        yield from fields_of(shape, f"{place}.")
    else:
        yield place


def test_every_value_of_a_plan_has_a_rule() -> None:
    places = list(fields_of(Plan))
    assert "stages[].data.sources[].annotations" in places and "model.sizes.modules[].name" in places
    around = ("model.sizes.", "stages[].data.image_counts.", "stages[].data.validation.sources[]")
    missing = [place for place in places if place not in RULES and not place.startswith(around)]
    assert missing == []


def test_every_key_of_the_language_has_a_rule() -> None:
    ruled = {key for rule in RULES.values() for key in rule.keys}
    names = [key.path.removeprefix("stages[].").replace("[]", "") for key in all_keys()]
    assert len(names) > 100
    whole = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    missing = [
        name
        for name in names
        if name not in ruled | OF_NO_PLAN | whole and not any(name.startswith(f"{each}.") for each in ruled)
    ]
    assert missing == []


def test_rules_name_keys_of_the_language() -> None:
    """A rule of a key that was renamed would advise what is refused."""
    known = {key.path.removeprefix("stages[].").replace("[]", "") for key in all_keys()}
    for place, rule in RULES.items():
        if rule.kind == "follows" or place == "world_size":
            continue
        for key in rule.keys:
            name = key.removeprefix("train.extra.")
            assert key in known or name in EXTRA_FIELDS, (place, key)


def test_other_arguments_are_learned_unless_they_are_listed() -> None:
    harmless = {
        name
        for name in EXTRA_FIELDS
        if rule_of(f"stages[].train.training_arguments.{name}").kind == "harmless"
    }
    assert {"dataloader_pin_memory", "torch_compile", "log_level"} <= harmless
    assert not harmless & {"dataloader_drop_last", "neftune_noise_alpha", "lr_scheduler_kwargs", "optim_args"}
    unknown = rule_of("stages[].train.training_arguments.of_a_later_version")
    assert (unknown.kind, unknown.keys) == ("learned", ("train.extra.of_a_later_version",))
    assert {f"train.{name}" for name in Train.model_fields} <= {k for r in RULES.values() for k in r.keys}


def test_other_keys_of_deepspeed_are_learned_unless_they_are_listed() -> None:
    learned = {name for name in DEEPSPEED_KEYS if rule_of(f"stages[].deepspeed.{name}").kind == "learned"}
    assert {"gradient_clipping", "communication_data_type", "fp16", "bf16", "optimizer"} <= learned
    assert not learned & {"zero_optimization", "steps_per_print", "train_batch_size"}


SECTIONS = ("model", "data", "train.extra", "train", "lora")


def table() -> Iterator[str]:
    """The table of docs/training.md: the keys of each section by what their change means."""
    cells: dict[tuple[str, str], set[str]] = {}
    for place, rule in RULES.items():
        if rule.kind == "follows" or place in ("recipe", "world_size") or place.startswith("model.sizes"):
            continue
        for key in rule.keys:
            section = next((name for name in SECTIONS if key.startswith(f"{name}.")), "")
            if key != "deepspeed" or place == "stages[].deepspeed":
                cells.setdefault((section, rule.kind), set()).add(key.removeprefix(f"{section}."))
    for section in ("", *SECTIONS):
        texts = []
        for kind in ("learned", "harmless", "structural"):
            keys = cells.get((section, kind), set())
            whole = sorted(key for key in keys if not any(key.startswith(f"{each}.") for each in keys))
            texts.append(", ".join(f"`{key}`" for key in whole) or "–")
        yield f"| {f'`{section}`' if section else 'a stage'} | {' | '.join(texts)} |"


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    missing = [line for line in table() if line not in text]
    assert missing == [], "\n".join(missing)


# ---- what a change means ---------------------------------------------------------------------------------

S = "stages.0."
HALVED = S + "train.per_device_train_batch_size=2"


def changes(*sets: str, world_size: int = 1, before: tuple[str, ...] = (), start_size: int = 1) -> list[str]:
    """`kind key` of each change that `--set` makes to the tiny Stage 1."""
    text = yaml_text(stage1_values(Path("out")))
    started = stage_plan(plan_recipe(load_source(text, "r.yaml", before), world_size=start_size), 0)
    loaded = load_source(text, "r.yaml", (*before, *sets))
    wanted = stage_plan(plan_recipe(loaded, world_size=world_size), 0)
    found = find_changes(started.model_dump(mode="json"), wanted, loaded.recipe, 0)
    return [f"{change.kind} {change.place}" for change in found]


CHANGES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "nothing": ((), []),
    "saving": ((S + "train.save_steps=50",), ["harmless train.save_steps"]),
    "workers": ((S + "train.dataloader_num_workers=1",), ["harmless train.dataloader_num_workers"]),
    "a bad image": ((S + "data.on_bad_image=skip",), ["harmless data.on_bad_image"]),
    "another folder": ((S + "output_dir=elsewhere",), ["harmless output_dir"]),
    "samples": ((S + "sample_every=3",), ["harmless sample_every"]),
    "checkpointing": ((S + "train.gradient_checkpointing=false",), ["harmless train.gradient_checkpointing"]),
    "DeepSpeed": ((S + "deepspeed=zero2",), ["harmless deepspeed"]),
    "rate": ((S + "train.learning_rate=2e-3",), ["learned train.learning_rate"]),
    "clipping under DeepSpeed": (
        (S + "deepspeed=zero2", S + "train.max_grad_norm=0.5"),
        ["learned train.max_grad_norm", "harmless deepspeed"],
    ),
    "epochs": ((S + "train.num_train_epochs=4",), ["learned train.num_train_epochs"]),
    "the same number of steps": ((S + "train.max_steps=18",), []),
    "steps": ((S + "train.max_steps=30",), ["learned train.max_steps"]),
    "steps and warm-up": (
        (S + "train.max_steps=300", S + "train.warmup_steps=2"),
        ["learned train.max_steps", "learned train.warmup_steps"],
    ),
    "more steps, the same share of warm-up": ((S + "train.max_steps=300",), ["learned train.max_steps"]),
    "warm-up": ((S + "train.warmup_ratio=0.5",), ["learned train.warmup_ratio"]),
    "half the step": (
        (HALVED,),
        ["learned train.per_device_train_batch_size"],
    ),
    "the same step in halves": (
        (HALVED, S + "train.gradient_accumulation_steps=2"),
        ["harmless train.per_device_train_batch_size"],
    ),
    "accumulation": (
        (S + "train.gradient_accumulation_steps=2",),
        ["learned train.gradient_accumulation_steps"],
    ),
    "seed": (
        (S + "train.seed=3", S + "data.sources.0.weight=0.5"),
        ["learned data.sources.0.weight", "learned train.seed"],
    ),
    "precision": ((S + "train.bf16=true",), ["learned train.bf16"]),
    "globs of the same modules": ((S + 'trainable=["projector.*"]',), []),
    "other modules": ((S + 'trainable=["projector","lm_head"]',), ["structural trainable"]),
    "LoRA": ((S + "lora={r: 8}",), ["structural trainable", "structural lora"]),
    "optimizer": ((S + "train.optim=sgd",), ["structural train.optim"]),
    "projector": (
        ("model.projector.type=linear", "model.projector.init_from=null"),
        ["structural model.projector.type", "learned model.projector.init_from"],
    ),
    "validation": ((S + "data.validation={split: 2}",), ["learned data.validation.split"]),
    "groups": (
        (S + "param_groups=[{modules: [projector], learning_rate: 1e-4}]",),
        ["learned param_groups"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_means(name: str) -> None:
    sets, expected = CHANGES[name]
    assert changes(*sets) == expected


def name_of(*sets: str) -> str:
    loaded = load_source(yaml_text(stage1_values(Path("out"))), "r.yaml", sets)
    plan = stage_plan(plan_recipe(loaded, world_size=1), 0)
    return run_name(plan, contents_of(plan, describe_inputs(Path("out"), plan)))


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_named_for_what_it_learns(name: str) -> None:
    sets, expected = CHANGES[name]
    if not any(change.startswith("structural") for change in expected):
        assert (name_of(*sets) != name_of()) == any(change.startswith("learned") for change in expected)


def test_another_number_of_processes() -> None:
    same = (S + "train.global_batch_size=8",)
    assert changes(before=same, world_size=2) == ["harmless world_size"]
    assert changes(world_size=2) == ["harmless world_size", "learned train.global_batch_size"]


def test_deepspeed_is_no_other_engine_for_an_optimizer_of_whole_tensors() -> None:
    for stages in (("none", "zero2"), ("zero2", "zero3"), ("zero3", "none")):
        before = (S + "train.optim=adafactor", S + f"deepspeed={stages[0]}")
        found = changes(S + f"deepspeed={stages[1]}", before=before)
        assert "structural deepspeed.zero_optimization.stage" in found


def test_an_optimizer_of_whole_tensors_keeps_its_pieces(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_checkpoint(run, step=2)

    def resumed(world_size: int, *more: str) -> None:
        loaded = load_source(yaml_text(stage1_values(run)), "r.yaml", more)
        (stage,) = plan_recipe(loaded, world_size=world_size).stages
        check_pieces(stage, 0, run / "checkpoint-2", world_size=world_size)

    resumed(1, S + "train.optim=adafactor", S + "deepspeed=zero2")
    resumed(2, S + "train.optim=adafactor")
    resumed(2, S + "deepspeed=zero2")
    with pytest.raises(RecipeError, match="another number of processes") as refused:
        resumed(2, S + "train.optim=adafactor", S + "deepspeed=zero2")
    (problem,) = refused.value.problems
    assert "is of 1 processes, and there are 2 now" in str(problem.found)
    assert "--processes 1" in str(problem.hint) and f"init_from: {run}/checkpoint-2" in str(problem.hint)


def test_the_order_of_the_original_is_no_matter_of_processes() -> None:
    before = (S + "train.global_batch_size=8", S + "data.order=original")
    assert changes(before=before, world_size=2) == ["harmless world_size"]
    assert changes(before=before, start_size=2) == ["harmless world_size"]
    chosen = changes(S + "data.order=seed", before=before, start_size=2, world_size=2)
    assert chosen == ["learned data.order"]


def test_a_grid_that_was_not_known_is_no_change() -> None:
    """Before a tower's config was downloaded, its usual five sizes are not known."""
    sets = (S + "data.image_aspect_ratio=anyres", S + "data.max_length=4096")
    unknown = (*sets, "model.language_model=some/where", "model.vision_tower.source=else/where")
    grid = S + "data.image_grid_pinpoints=[[112, 112]]"
    found = changes("model.vision_tower.source=" + str(FIXTURES / "tiny_clip"), before=unknown)
    assert not any("pinpoints" in change for change in found)
    assert "learned data.image_grid_pinpoints" in changes(grid, before=unknown)
    assert changes(grid, before=sets) == ["learned data.image_grid_pinpoints"]


def test_a_group_follows_the_rate_of_its_stage() -> None:
    groups = (S + "param_groups=[{modules: [projector], weight_decay: 0.1}]",)
    assert changes(S + "train.learning_rate=2e-3", before=groups) == ["learned train.learning_rate"]
    own = (S + "param_groups=[{modules: [projector], learning_rate: 5e-4}]",)
    found = changes(S + "train.learning_rate=2e-3", *groups, before=own)
    assert {"learned train.learning_rate", "learned param_groups.0.learning_rate"} <= {*found}


def test_what_moved_with_the_same_content_is_harmless(tmp_path: Path) -> None:
    data = S + "data.sources.0.annotations="
    shutil.copy(FIXTURES / "stage1.json", tmp_path / "moved.json")
    assert changes(f"{data}{tmp_path}/moved.json") == ["harmless data.sources.0.annotations"]
    text = (FIXTURES / "stage1.json").read_text()
    (tmp_path / "other.json").write_text(text.replace("a", "e", 1))
    assert changes(f"{data}{tmp_path}/other.json") == ["learned data.sources.0.annotations"]
    assert name_of(f"{data}{tmp_path}/moved.json") == name_of() != name_of(f"{data}{tmp_path}/other.json")
    shutil.copytree(FIXTURES / "tiny_vicuna", tmp_path / "vicuna")
    moved = f"model.language_model={tmp_path}/vicuna"
    assert changes(moved) == ["harmless model.language_model.source"]
    with (tmp_path / "vicuna" / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"!")
    assert changes(moved) == ["learned model.language_model.source"]
    shutil.copytree(FIXTURES / "images", tmp_path / "images")
    images = S + f"data.sources.0.images={tmp_path}/images"
    assert changes(images) == ["harmless data.sources.0.images"]
    next(each for each in sorted((tmp_path / "images").iterdir()) if each.is_file()).write_bytes(b"")
    assert changes(images) == ["learned data.sources.0.images"]


# ---- what is accepted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "stage"),
    [
        ("train.learning_rate", "train.learning_rate", None),
        ("stages.fine.tune.train.learning_rate", "train.learning_rate", "fine.tune"),
        ("stages.0.data.sources", "data.sources", "one"),
        ("data.sources.0.weight", "data.sources.0.weight", None),
        ("model.language_model", "model.language_model", None),
        ("train.extra.neftune_noise_alpha", "train.extra.neftune_noise_alpha", None),
    ],
)
def test_keys_that_may_be_accepted(text: str, key: str, stage: str | None) -> None:
    (accepted,) = read_accepted([text], ["one", "fine.tune"])
    assert (accepted.key, accepted.stage) == (key, stage)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("learning_rate", "did you mean `train.learning_rate`"),
        ("train.learning_rat", "did you mean `train.learning_rate`?"),
        ("stages.too.train.seed", "did you mean `two`?"),
        ("train", "name the key, such as train."),
        ("", "no such key; it takes keys such as"),
        ("checkpoint", "no such key; it takes keys such as"),
        ("stages.two", "name the key too, such as stages.two.train.learning_rate"),
        ("train.seed,train.max_steps", "write `--accept` once for each key"),
    ],
)
def test_keys_that_do_not_exist(text: str, advice: str) -> None:
    with pytest.raises(AcceptError) as refused:
        read_accepted([text], ["one", "two"])
    assert advice in str(refused.value)


# ---- the history -----------------------------------------------------------------------------------------


def test_a_torn_line_of_the_history_stays_and_hurts_nothing(tmp_path: Path) -> None:
    history.append(tmp_path, {"event": "start", "accepted": []})
    whole = (tmp_path / history.HISTORY).read_text()
    (tmp_path / history.HISTORY).write_text(whole + '{"event": "resu')
    history.append(tmp_path, {"event": "resume", "accepted": ["train.seed"]})
    assert (tmp_path / history.HISTORY).read_text().startswith(whole + '{"event": "resu\n{')
    assert [line["event"] for line in history.read_history(tmp_path)] == ["start", "resume"]
    assert history.accepted_before(tmp_path) == {"train.seed"}


# ---- runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 6 steps with a checkpoint after every second one; copy it to change it."""
    folder = tmp_path_factory.mktemp("whole")
    values = stage1_values(folder / "run", max_steps=6, save_strategy="steps", save_steps=2)
    del values["stages"][0]["train"]["num_train_epochs"]
    run_to_end(write_recipe(values, folder / "recipe.yaml"))
    return folder


Try = Callable[..., tuple[int, str, str]]


@pytest.fixture
def look(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Try:
    """A dry run of the recipe, cut after step 4, with these words; gives code, output and errors."""
    recipe = copy_cut(whole, tmp_path, step=4)

    def dry(*words: str, resume: bool = True) -> tuple[int, str, str]:
        options = ["--processes", "1", "--dry-run", *["--resume"] * resume]
        code = main(["run", str(recipe), *options, *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return dry


def setting(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", f"stages.pretrain.{value}")]


def test_a_harmless_change_is_taken_and_named(look: Try) -> None:
    code, out, err = look(*setting("train.save_steps=50", "train.dataloader_num_workers=1"))
    assert code == 0, err
    assert "pretrain: takes train.save_steps: 2 then, 50 now\n" in out
    assert "pretrain: takes train.dataloader_num_workers: 0 then, 1 now\n" in out
    assert "checkpoint-4" in out


def test_a_learned_change_is_refused_with_the_command_that_accepts_it(look: Try, tmp_path: Path) -> None:
    changed = setting("train.learning_rate=1e-4", "train.max_steps=8")
    times = ["--max-time", "3:55:00", "--hang-timeout", "0:05:00"]
    code, _, err = look(*changed, *times)
    assert code == 1
    assert "train.learning_rate: 1e-3 then, 1e-4 now" in err and "train.max_steps: 6 then, 8 now" in err
    command = next(line for line in err.splitlines() if "--accept" in line).split("`")[1]
    words = command.split()
    assert words[:4] == ["llava-recipe", "run", str(tmp_path / "recipe.yaml"), "--resume"]
    accepting = [word for key in ("train.max_steps", "train.learning_rate") for word in ("--accept", key)]
    assert set(words[4:]) == {*changed, *accepting, *times, "--processes", "1"}
    half = look(*changed, *accepting[:2])[2]
    assert [half.count(f"--accept {key}") for key in accepting[1::2]] == [1, 1], "what was given, once"
    code, out, err = look(*changed, *accepting)
    assert code == 0, err
    assert "pretrain: accepts train.learning_rate: 1e-3 then, 1e-4 now\n" in out


def test_a_command_of_a_launcher_is_advised_with_it(whole: Path, tmp_path: Path) -> None:
    changed = setting("train.learning_rate=1e-4")[1:]
    plan = plan_recipe(load_recipe(str(copy_cut(whole, tmp_path, step=4)), changed), world_size=1)
    state = read_folder_state(tmp_path / "run", plan)
    problem = other_plan(plan.stages[0], 0, state, state.decisive, command=("run", "FILE"), launcher="srun")
    assert "`run FILE`, started by srun as before, goes on from checkpoint-4" in str(problem.hint)


def test_a_needless_accept_is_wrong_usage(look: Try, tmp_path: Path) -> None:
    code, _, err = look("--accept", "train.learning_rate")
    assert code == 2 and "--accept train.learning_rate: nothing has changed there" in err
    code, _, err = look(*setting("train.save_steps=3"), "--accept", "train.save_steps")
    assert code == 2 and "this change needs none" in err
    code, _, err = look("--set", "model.vision_tower.select_layer=-1", "--accept", "model.vision_tower")
    assert code == 2 and "name what has changed in it: model.vision_tower.select_layer" in err
    code, _, err = look("--accept", "learning_rate")
    assert code == 2 and "did you mean `train.learning_rate`" in err
    history.append(tmp_path / "run", {"accepted": ["train.learning_rate"]})
    assert look("--accept", "train.learning_rate")[0] == 0, "a scheduler runs the same command again"


def test_a_structural_change_cannot_be_accepted(look: Try) -> None:
    code, _, err = look(*setting('trainable=["projector","lm_head"]'), "--accept", "trainable")
    assert code == 1
    assert "run/checkpoint-4` and another `output_dir`" in err and "--accept" not in err
    code, _, err = look("--set", "model.projector={type: linear}")
    assert code == 1 and "no checkpoint of it fits this recipe; or choose another `output_dir`" in err


def test_less_steps_than_were_trained(look: Try) -> None:
    err = look(*setting("train.max_steps=3"))[2]
    assert (
        "write `max_steps: 4` to end the run there; or remove checkpoint-4" in err and "--accept" not in err
    )
    code, _, err = look(*setting("train.max_steps=3"), "--accept", "train.max_steps")
    assert code == 1
    assert "checkpoint-4 is after step 4, and the recipe ends after step 3" in err
    ways_on = "write `max_steps: 4` to end the run there; or remove checkpoint-4 to go back to checkpoint-2"
    assert ways_on in err
    code, _, err = look(*setting("train.max_steps=3"))
    assert code == 1 and ways_on in err and "--accept" not in err, "nothing is advised that is refused then"
    assert look(*setting("train.max_steps=4"), "--accept", "train.max_steps")[0] == 0
    shorter = setting("train.max_steps=null", "train.num_train_epochs=0.3")
    code, _, err = look(*shorter, "--accept", "train.max_steps")
    assert code == 1 and "write `max_steps: 4` instead of `num_train_epochs` to end the run there" in err


def test_a_finished_run_that_cannot_be_extended_stays_as_it_was(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it starts from was damaged: nothing in its folder changes before that is known."""
    run, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(whole / "run", run)
    shutil.copytree(whole / "run", start)
    changed = setting(f"output_dir={run}", f"init_from={start}", "train.max_steps=8")
    changed += ["--set", "model.projector.init_from=null"]
    accepted = ("train.max_steps", "init_from", "model.projector.init_from")
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    with (start / "mm_projector.bin").open("r+b") as weights:
        weights.write(b"!")
    keys = [word for key in accepted for word in ("--accept", key)]
    assert main(["run", str(whole / "recipe.yaml"), "--processes", "1", *changed, *keys]) == 1
    assert "mm_projector.bin was changed after the run was finished" in capsys.readouterr().err
    after = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert {name: after.get(name) for name in before} == before


def test_a_plan_says_what_the_run_would_do(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copy_cut(whole, tmp_path, step=4)
    assert main(["plan", str(recipe), "--world-size", "1"]) == 0
    assert f"continues from {tmp_path}/run/checkpoint-4" in capsys.readouterr().out
    changed = setting("train.learning_rate=1e-4")
    assert main(["plan", str(recipe), "--world-size", "1", *changed]) == 0
    assert "`run` needs --accept train.learning_rate (train.learning_rate: 1e-3" in capsys.readouterr().out


def test_a_checkpoint_to_start_from_must_be_whole(look: Try, tmp_path: Path) -> None:
    weights = tmp_path / "run" / "checkpoint-4" / "trained.safetensors"
    changed = setting(f"init_from={weights.parent}", f"output_dir={tmp_path}/new")
    code, _, err = look(*changed, "--set", "model.projector={type: linear}")
    assert code == 1 and "`init_from` has another projector" in err, "it knows the model of its run"
    assert look(*changed, "--set", "model.projector={type: mlp2x_gelu}")[0] == 0
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    for place in (weights.parent, weights):
        with pytest.raises(RecipeError, match="is damaged"):
            check_start(str(place), path=("stages", 0, "init_from"))
    code, _, err = look(
        *setting(f"output_dir={tmp_path}/new"), "--set", f"model.projector.init_from={weights}"
    )
    assert code == 1 and "trained.safetensors was changed after it was saved" in err


def test_a_checkpoint_of_another_run_is_passed_over(look: Try, tmp_path: Path) -> None:
    """One with the same shapes, copied into the folder: its own seal is sound."""
    copied = tmp_path / "run" / "checkpoint-4"
    own = read_facts(copied)
    assert own.run == history.run_of(tmp_path / "run")
    seal(copied, replace(own, run="another"))
    code, out, err = look()
    assert code == 0, err
    assert f"pretrain: skips {copied}: another run saved it\n" in out and "checkpoint-2" in out
    seal(copied, replace(own, run=None))
    assert f"resumes from {copied}" in look()[1], "an earlier version sealed it"


def test_a_folder_in_which_nothing_was_trained_never_blocks(whole: Path, tmp_path: Path) -> None:
    recipe = copy_cut(whole, tmp_path, step=0)
    changed = setting('trainable=["projector","lm_head"]', "train.max_steps=2")
    said = run_to_end(recipe, *changed)
    assert "takes train.max_steps: 6 then, 2 now" in said
    start, again = (json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines())
    assert (start["event"], again["event"]) == ("start", "restart")
    assert "plan_before" not in start
    assert again["plan_before"]["stages"][0]["train"]["max_steps"] == 6
    assert {change["key"] for change in again["changes"]} >= {"train.max_steps", "trainable"}
    assert json.loads((tmp_path / "run" / "DONE").read_text())["steps"] == 2


def test_a_finished_run_is_extended(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = whole / "recipe.yaml", tmp_path / "run"
    shutil.copytree(whole / "run", run)
    done = (run / "DONE").read_text()
    longer = setting("train.max_steps=8", f"output_dir={run}")
    assert main(["run", str(recipe), "--processes", "1", "--dry-run", *longer]) == 1
    refused = capsys.readouterr().err
    assert "a finished run" in refused and "goes on from checkpoint-6" in refused
    run_to_end(recipe, *longer, "--accept", "train.max_steps")
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 9))
    assert json.loads((run / "DONE").read_text())["steps"] == 8
    line = history.read_history(run)[-1]
    assert (line["event"], line["step"]) == ("extend", 6)
    assert line["done_before"] == json.loads(done)
    assert json.loads((run / "plan.json").read_text())["stages"][0]["train"]["max_steps"] == 8
    assert main(["run", str(recipe), "--processes", "1", "--dry-run", *longer]) == 0
    assert "already done" in capsys.readouterr().out


def test_an_accepted_rate_applies_from_the_checkpoint_on(whole: Path, tmp_path: Path) -> None:
    recipe = copy_cut(whole, tmp_path, step=4)
    changed = setting("train.learning_rate=1e-4", "train.logging_steps=6", "train.save_steps=5")
    run_to_end(recipe, "--resume", *changed, "--accept", "train.learning_rate")
    before, after = read_metrics(whole / "run"), read_metrics(tmp_path / "run")
    rates = [[line["learning_rate"] for line in lines] for lines in (before, after)]
    assert rates[1] == pytest.approx([*rates[0][:4], 0.1 * rates[0][5]])
    assert rates[0][5] > 0
    # What changes no step applies too.
    assert [each.step for each in list_checkpoints(tmp_path / "run")] == [6, 5, 4, 2]


def test_a_stage_starts_from_the_checkpoint_of_another_run(whole: Path, tmp_path: Path) -> None:
    """What a structural change is advised to do."""
    recipe = copy_cut(whole, tmp_path, step=4)
    trained = load_file(tmp_path / "run" / "checkpoint-4" / "trained.safetensors")
    start = tmp_path / "run" / "checkpoint-4"
    changed = setting(
        'trainable=["projector","lm_head"]', f"init_from={start}", f"output_dir={tmp_path}/new",
        "train.max_steps=2", "train.learning_rate=1e-9",
    )  # fmt: skip
    run_to_end(recipe, *changed, "--set", "model.projector={type: mlp2x_gelu}")
    projector = load_file(tmp_path / "new" / "mm_projector.safetensors")
    assert len(trained) == len(projector) > 0
    for name, tensor in trained.items():
        other = projector[name.replace("projector.", "model.mm_projector.")]
        assert (tensor - other).abs().max() < 1e-6
