# make install    create .venv with all libraries; the other commands do so too
# make pretrain   train, evaluate and sample the quickstart model
# make instruct   tune the quickstart model on dialogues, and measure its answers
# make test       run every test that needs no GPU
# make test-fast  run the tests that are not marked slow: a few minutes
# make test-failed   run the tests that failed in the last run, one at a time
# make test-transformers-5   run the tests that use transformers, with version 5
# make lint       formatting, lint, layers of imports, and types
# make clean      remove .venv and caches; runs/ stays
#
# PYTHON=/path/to/python3 selects the interpreter (3.10 to 3.12) for .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install pretrain instruct test test-fast test-failed test-transformers-5 lint format clean

VENV := .venv
STAMP := $(VENV)/.installed
TRANSFORMERS_5 := $(VENV)/transformers-5
WITH_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

help:
	@sed -n '1,/^$$/s/^# \?//p' Makefile

# make gets Ctrl-C too, and ends by itself when the recipe has ended. So an interrupted command is no error of the recipe,
# which make would report below the command's own last message.
INTERRUPTIBLY = interrupted=; trap 'interrupted=yes' INT; { $(1); } || { code=$$?; [ "$$interrupted" ] || exit $$code; }

# Rebuilt only when the requirements of the package change.
$(STAMP): setup.py constraints.txt launch/make_venv.sh
	@$(call INTERRUPTIBLY,PYTHON="$(PYTHON)" bash launch/make_venv.sh $(VENV) && touch $@)

# This folder precedes the 4.57 of .venv on the path. Everything else is imported from .venv.
$(TRANSFORMERS_5)/.installed: constraints-transformers-5.txt $(STAMP)
	@rm -rf $(TRANSFORMERS_5)
	@$(VENV)/bin/python -m pip install -qq --no-deps --no-input --disable-pip-version-check \
		--target $(TRANSFORMERS_5) -r constraints-transformers-5.txt
	@touch $@

install: $(STAMP) $(TRANSFORMERS_5)/.installed

pretrain: $(STAMP)
	@$(call INTERRUPTIBLY,$(WITH_VENV) bash launch/pretrain.sbatch configs/quickstart.yaml)

# After pretrain. A second call finds the finished run.
instruct: $(STAMP)
	@$(call INTERRUPTIBLY,$(WITH_VENV); bash launch/pretrain.sbatch configs/quickstart-instruct.yaml \
		&& tolktrain evaluate runs/quickstart-instruct --answers data/sample/dialogues \
		&& tolktrain report runs/quickstart-instruct)

# Three test processes for two cores, because many tests wait, and others start further processes. One file each at a
# time, because the tests of a file share slow fixtures. tests/conftest.py puts the slowest files first.
PYTEST := pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder

test: $(STAMP) $(TRANSFORMERS_5)/.installed
	@$(WITH_VENV) $(PYTEST)

test-fast: $(STAMP)
	@$(WITH_VENV) $(PYTEST) -m "not slow"

test-failed: $(STAMP)
	@$(WITH_VENV) pytest -q -rs --last-failed --last-failed-no-failures none

# Only files with the mark are named, so that others are not imported. If no file has it, pytest fails. The cache of its
# own lets it run at the same time as `make test`, whose failures `make test-failed` repeats.
test-transformers-5: $(TRANSFORMERS_5)/.installed
	@$(WITH_VENV) PYTHONPATH="$(CURDIR)/$(TRANSFORMERS_5)" pytest -q -rs --transformers 5 -m transformers \
		-o cache_dir=$(TRANSFORMERS_5)/.pytest_cache \
		$$(grep -rl --include='test_*.py' 'pytest\.mark\.transformers' tests)

lint: $(STAMP)
	@$(WITH_VENV) ruff format --check .
	@$(WITH_VENV) ruff check .
	@$(WITH_VENV) python tools/check_layers.py
	@$(WITH_VENV) mypy

format: $(STAMP)
	@$(WITH_VENV) ruff check -q --fix .
	@$(WITH_VENV) ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
