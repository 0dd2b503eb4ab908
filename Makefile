# `make demo` and `make test` do all the set-up: they make .venv/ where it is absent or out of date.
PYTHON ?= python3
# Options for pip, such as the index of another build of torch.
PIP_FLAGS ?=
# Two tests at a time: many of them start processes and wait. `PYTEST_FLAGS=` runs one after another.
PYTEST_FLAGS ?= -n 2 --dist worksteal

BIN := .venv/bin
READY := .venv/.ready
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
# The environment's own ninja must be found where DeepSpeed compiles something.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup demo test check quick lint format bench clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make or renew the virtual environment .venv/

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old or absent: name a Python 3.11 or newer, as in make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  $(PYTHON) -m venv --clear .venv
	@echo "installing the tested set into .venv/ (gigabytes; one to several minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt $(TORCH) -e '.[dev]'
	@touch $@

demo: $(READY)  ## train and judge a tiny model on drawn pictures: no network, no GPU
	@$(RUN) llava-recipe demo

test: check  ## what CI runs: linters, types, import rules and every test

check: lint  ## the same under its other name
	@$(RUN) python -m pytest $(PYTEST_FLAGS)

quick: lint  ## linters and the tests that take no more than a few seconds
	@$(RUN) python -m pytest $(PYTEST_FLAGS) -m 'not slow'

lint: $(READY)  ## ruff, mypy --strict and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## let ruff write what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)  ## time a Stage-1 step (see benchmarks/README.md)
	@$(RUN) python benchmarks/step.py

clean:  ## remove the environment, caches and what the demo wrote
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
