# Every target does its own set-up: a virtual environment in .venv with the tested versions, made once.
# Needs python3 (3.11 or newer, with venv) and make.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Of pip only what concerns the installation.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

PYTHON ?= python3
VENV   ?= .venv
BUDGET ?= 3m
CONFIG ?= cpu
OUT    ?= out/quickstart
DATA   ?= out/quickstart-data
LAUNCH ?=
ARGS   ?=
SEEDS  ?= 3
TORCH_INDEX ?=
CHECKS ?=

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED    := $(VENV)/.installed-test
OTHERS    := $(VENV)/.installed-ecosystem
SITE      := $(VENV)/.installed-site
SOURCES   := setup.cfg pyproject.toml constraints.txt
CODE      := budget_trainer data_prep train_mlm.py finetune_glue.py sweep.py

.PHONY: help install quickstart benchmark docs site test test-slow test-all test-ecosystem acceptance style quality

help:
	@echo "make quickstart   pre-train on the docstrings of the installed packages and print five fill-mask examples"
	@echo "                  BUDGET=$(BUDGET)  CONFIG=$(CONFIG)  OUT=$(OUT)"
	@echo "                  LAUNCH='flags of accelerate launch'  ARGS='flags of train_mlm.py'"
	@echo "make benchmark    ours and the baselines of benchmarks/baselines/ in BUDGET each, on the same text, SEEDS=$(SEEDS) times"
	@echo "                  (recipes + baselines) x seeds x (BUDGET + about a minute): BUDGET=5m takes an hour and a quarter or so"
	@echo "                  ARGS='flags of benchmarks/quality_at_budget.py'; a repeated command goes on, at the same commit"
	@echo "make test         the tests that a change waits for (under 10 minutes on two cores)"
	@echo "make test-all     these and the slow ones (about half an hour)"
	@echo "make test-ecosystem   trl, sentence-transformers, peft and setfit under a budget, in $(VENV)-ecosystem"
	@echo "make acceptance   every promise measured, as a table in out/acceptance.md; CHECKS='budget resume' selects"
	@echo "make docs         docs/api.md from the docstrings, the picture of the packages from the imports"
	@echo "make site         the documents as a site in out/site: links, anchors and navigation checked, with a search"
	@echo "make install      only the virtual environment; TORCH_INDEX=URL takes torch from another package index"
	@echo "make style        format and fix what ruff can fix"
	@echo "make quality      ruff and mypy, changing nothing"

# An environment that already holds a torch within the constraints (a CPU or a CUDA build of your choice) keeps it.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if [ -n "$(TORCH_INDEX)" ]; then \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --index-url $(TORCH_INDEX) torch; fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# DS_BUILD_OPS=0: DeepSpeed needs no kernels for its tests on a CPU.
$(TESTED): $(INSTALLED)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,deepspeed,trackers,energy,site]'
	touch $@

$(OTHERS): $(INSTALLED) tests/ecosystem/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint tests/ecosystem/constraints.txt \
	  --editable '.[ecosystem-test]'
	touch $@

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/python -m data_prep.quickstart --profile $(CONFIG) --launch="$(LAUNCH)" --data_dir $(DATA) \
	  --output_dir $(OUT) --total_training_time $(BUDGET) $(if $(ARGS),-- $(ARGS))

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/quality_at_budget.py --budget $(BUDGET) --seeds $(SEEDS) \
	  --config_file $(CONFIG) --output_dir out/benchmark-$(BUDGET) --resume $(ARGS)

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=25

test: $(TESTED)
	$(PYTEST) -m "not slow"

test-slow: $(TESTED)
	$(PYTEST) -m slow

# In one go: what both kinds of tests of a file share is made once, and no worker waits for the other in between.
test-all: $(TESTED)
	$(PYTEST)

# In an environment of its own: other libraries have versions of their own in mind.
test-ecosystem:
	$(MAKE) VENV=$(VENV)-ecosystem $(VENV)-ecosystem/.installed-ecosystem
	$(VENV)-ecosystem/bin/python -m pytest tests/ecosystem

acceptance: $(TESTED)
	$(BIN)/python tests/acceptance.py $(CHECKS)

docs:
	$(PYTHON) docs/make_api.py --write
	$(PYTHON) docs/make_architecture.py --write

$(SITE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[site]'
	touch $@

# Its search needs a server: python -m http.server --directory out/site
site: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

style: $(TESTED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
