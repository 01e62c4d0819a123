# Tiercast. `make` alone lists the targets; `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format golden bench docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Tiercast needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[runtime,text,dev]'
	@touch $@

setup: $(READY) ## make .venv with the pinned versions (every other target does it by itself)

demo: $(READY) ## the main job: probe this machine, run, simulate, compare, price (under five minutes)
	$(BIN)/tiercast demo

test: $(READY) ## all tests that need no GPU
	$(BIN)/python -m pytest

check: $(READY) ## format, lint, types, import walls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

format: $(READY) ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(READY) ## rewrite the golden outputs (review the diff)
	$(BIN)/python -m pytest --update-golden

bench: $(READY) ## time our code beside the alternative
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(READY) ## regenerate the parts of README and docs that come from the committed demo record
	$(BIN)/python docs/generate.py

clean: ## remove the environment and everything the targets made
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
