# `make demo` and `make test` do the whole set-up: they make .venv/ if it is absent or out of date.
PYTHON ?= python3
# Options for pip, such as the index of another build of torch.
PIP_FLAGS ?=
# uv installs if it is available and PIP_FLAGS, which are pip's, is empty. `make UV=` uses pip.
UV ?= $(shell command -v uv)
# Two tests at a time: many start processes and wait. `PYTEST_FLAGS=` runs one after another.
PYTEST_FLAGS ?= -n 2 --dist worksteal
# The order of the tests is random; `make test SEED=N PYTEST_FLAGS=` repeats one.
SEED ?= $(shell date +%s)
SEED := $(SEED)

BIN := .venv/bin
READY := .venv/.ready
# The environment's own ninja must be found where DeepSpeed compiles something. Tests start hundreds of
# processes, which must not compile the same sources again where bytecode is switched off.
in = PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(1)/bin:$$PATH"
RUN := $(call in,.venv)
TESTS := -m pytest $(PYTEST_FLAGS) --randomly-seed=$(SEED)
# Other versions warn of one another; what the package itself does wrong would warn in the tested set too.
OTHER_VERSIONS := -W ignore::DeprecationWarning -W ignore::FutureWarning

.DEFAULT_GOAL := help
.PHONY: help setup demo test check quick durations test-long test-oldest test-newest coverage lint format names docs bench slurm clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make or update the virtual environment .venv/

# $(call install,FOLDER,OPTIONS,WHAT): a terminal shows the installer's own progress, a log stays short.
installer = $(if $(strip $(PIP_FLAGS)),pip,$(if $(UV),uv,pip))
pip_in = $(1)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
uv_in = $(UV) pip install --python $(1)/bin/python
define install
@echo "installing into $(1)/ with $(installer): $(2) $(3)"
@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; $(call $(installer)_in,$(1)) $$quiet $(2) $(3)
endef

# $(call environment,FOLDER,OPTIONS): torch is named beside the package, so that neither the build of deepspeed
# nor the resolver reaches for another one.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "$(PYTHON) is too old or absent; name Python 3.11 or newer, as in make PYTHON=python3.12"; exit 1; }
@$(1)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
  $(PYTHON) -m venv --clear $(1)
@echo "setting up $(1)/ once, with $$($(1)/bin/python -V): gigabytes, one to several minutes"
$(call install,$(1),$(2),-e '.[dev]')
@touch $(1)/.ready
endef
torch_of = $(shell sed -n '/^torch==/p' $(1))

$(READY): pyproject.toml constraints.txt
	$(call environment,.venv,-c constraints.txt $(call torch_of,constraints.txt))

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest,-c constraints-oldest.txt $(call torch_of,constraints-oldest.txt))

demo: $(READY)  ## train and score a tiny model on drawn images: no network, no GPU
	@$(RUN) llava-recipe demo

test: check  ## run what CI runs: linters, types, import rules and every test

check: lint  ## the same as `make test`
	@$(RUN) python $(TESTS)

quick: lint  ## run linters, and the tests that tests/durations.json does not call slow
	@$(RUN) python $(TESTS) -m 'not slow'

durations: $(READY)  ## run every test on an idle machine, and record how long each takes
	@$(RUN) LLAVA_RECIPES_DURATIONS=1 python $(TESTS)

test-long: lint  ## run every test with all its examples and a fresh Python per run: far longer
	@$(RUN) LLAVA_RECIPES_LONG=1 LLAVA_RECIPES_FRESH=1 python $(TESTS)

test-oldest: .venv-oldest/.ready  ## run every test on the lowest versions that pyproject.toml allows
	@$(call in,.venv-oldest) python $(TESTS) $(OTHER_VERSIONS)

test-newest: override UV :=
test-newest:  ## run every test on the newest versions that pyproject.toml allows
	$(call environment,.venv-newest,--upgrade --upgrade-strategy eager torch)
	@$(call in,.venv-newest) python $(TESTS) $(OTHER_VERSIONS)

coverage: $(READY)  ## measure the branches that `make quick` covers
	@$(RUN) python $(TESTS) -m 'not slow' --cov=llava_recipes --cov-branch --cov-report=term
	@$(RUN) python -m coverage json -q -o - | $(RUN) python -c 'import json, sys; \
	  found = json.load(sys.stdin)["totals"]; \
	  print("branches: {covered_branches} of {num_branches}, {percent_branches_covered:.0f} %".format(**found))'

lint: $(READY)  ## run ruff, mypy --strict and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## fix and format with ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

names: $(READY)  ## regenerate names.json, keys.json, schemas/ and docs/reference.md
	@$(RUN) python -m tests.library_names

.venv/.docs: $(READY)
	$(call install,.venv,-c constraints.txt,-e '.[docs]')
	@touch $@

docs: .venv/.docs  ## build the site of docs/ into build/site/; a broken link is an error
	@$(BIN)/properdocs build --strict --quiet -f mkdocs.yml
	@echo "built build/site/index.html"

bench: $(READY)  ## time a Stage-1 step (see benchmarks/README.md)
	@$(RUN) python benchmarks/step.py

slurm: $(READY)  ## break and continue a job on Slurm, started on this machine (see tests/slurm/README.md)
	@$(RUN) python -m tests.slurm.broken_job

clean:  ## remove the environments, caches and what the demo wrote
	rm -rf .venv .venv-oldest .venv-newest demo build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
