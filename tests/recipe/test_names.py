"""names.json says what the installed libraries say, keys.json what the schema says."""

from __future__ import annotations

import json
import typing

from transformers import SchedulerType

from llava_recipes import versions
from llava_recipes.recipe import keys
from llava_recipes.recipe.language import schema_keys
from llava_recipes.recipe.names import (
    DEEPSPEED_KEYS,
    DEEPSPEED_REMOVED_KEYS,
    EXTRA_FIELDS,
    FILE,
    OPTIMIZERS,
    REFUSED_FIELDS,
    TRAINING_ARGUMENTS,
    ZERO_KEYS,
    ZERO_REMOVED_KEYS,
)
from llava_recipes.recipe.schema import Train
from tests.installed import only_with_the_tested
from tests.library_names import keys_text, library_names


def test_training_arguments_are_those_of_every_allowed_version() -> None:
    theirs = library_names()
    ours = versions.training_arguments(TRAINING_ARGUMENTS)
    assert ours.keys() == theirs["training_arguments"].keys()
    assert {name: theirs["training_arguments"][name] for name in EXTRA_FIELDS} == EXTRA_FIELDS
    assert set(theirs["optimizers"]) == OPTIMIZERS


def test_every_schedule_of_a_recipe_is_one_of_transformers() -> None:
    schedules = typing.get_args(Train.model_fields["lr_scheduler_type"].annotation)
    assert set(schedules) <= {kind.value for kind in SchedulerType}


def test_no_key_that_deepspeed_reads_is_unknown() -> None:
    """Keys come and go between its versions: one that an allowed version reads is at least no slip."""
    theirs = library_names()
    assert set(theirs["deepspeed_keys"]) <= DEEPSPEED_KEYS | DEEPSPEED_REMOVED_KEYS
    assert set(theirs["zero_keys"]) <= ZERO_KEYS | ZERO_REMOVED_KEYS
    assert not DEEPSPEED_REMOVED_KEYS & DEEPSPEED_KEYS and not ZERO_REMOVED_KEYS & ZERO_KEYS


@only_with_the_tested("transformers")
@only_with_the_tested("deepspeed")
def test_the_file_is_that_of_the_tested_versions() -> None:
    """After a change of constraints.txt: make names."""
    assert json.loads(FILE.read_text("utf-8")) == library_names()


def test_what_extra_takes_and_refuses_is_all_of_training_arguments() -> None:
    assert EXTRA_FIELDS.keys() | REFUSED_FIELDS.keys() >= TRAINING_ARGUMENTS.keys()
    assert REFUSED_FIELDS.keys() - TRAINING_ARGUMENTS.keys() == {"global_batch_size", "loss_normalization"}


def test_the_keys_are_those_of_the_schema() -> None:
    """After a change of the schema: make names."""
    assert keys.FILE.read_text("utf-8") == keys_text()
    assert keys.all_keys() == schema_keys()
