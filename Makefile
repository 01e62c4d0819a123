# Tiercast. `make` alone lists the targets; `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format golden bench gpu wheels docs validation clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Tiercast needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[runtime,text,report,cluster,dev]'
	@touch $@

setup: $(READY) ## make .venv with the pinned versions (every other target does it by itself)

demo: $(READY) ## the main job: probe this machine, run, simulate, compare, price (some five minutes)
	$(BIN)/tiercast demo

test: $(READY) ## all tests that need no GPU
	$(BIN)/python -m pytest

browser: $(READY) ## what the browser test of the report needs: playwright, and Chromium (installed where apt-get and root are at hand)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@command -v chromium || command -v chromium-browser || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || { echo "no Chromium here: install it with the machine's package manager"; exit 1; }

screenshot: browser ## draw docs/report.png anew
	$(BIN)/python docs/screenshot.py

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

# A bare GPU machine has no .venv and brings its own torch: there the target runs with the python3 it finds.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
SOURCES := benchmarks:profiles:runtime:simulator:planner:cli
gpu: ## measure and check everything on this GPU, in resumable stages (ARGS=--rehearse: on the CPU, in two minutes)
	@if ls .whl/*.whl >/dev/null 2>&1 && [ ! -d $(VENV) ]; then \
	  $(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target out/site .whl/*.whl; fi
	PYTHONPATH=$(CURDIR)/out/site:$(SOURCES) $(GPU_PYTHON) -m gpu_evidence $(ARGS)

# What a machine with torch, numpy, typer, rich and pytest lacks; for CPython 3.12 on x86-64 Linux, versions as pinned.
# numba is not among them: with llvmlite it is 64 MB, many images have it, and without it NumPy gathers on the host, more
# slowly (the record says which). Where the arms by host threads count: make wheels MORE="numba llvmlite".
MORE ?=
WHEELS := pydantic pydantic_core annotated-types typing-inspection typing_extensions simpy joblib PyYAML safetensors nvidia-ml-py
wheels: ## download the wheels a bare GPU machine lacks into .whl (needs a network)
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  -d .whl $(foreach name,$(WHEELS) $(MORE),$(shell grep -i '^$(name)==' constraints.txt))

docs: $(READY) ## regenerate the parts of README and docs that come from committed records
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/ablations.py

# Everything is made in out/ and goes to validation/ when it is whole: after an interruption run it again and it goes on.
MACHINE ?= two-core-xeon
REPEATS ?= 5
MADE := out/validation/$(MACHINE)
validation: $(READY) ## probe this machine and run the validation suite in rounds, score it, rewrite the pages (MACHINE=name; about an hour)
	mkdir -p $(MADE)
	$(BIN)/tiercast validate --suite --probe --folder $(MADE) --repeats $(REPEATS)
	$(BIN)/python docs/other_profiles.py $(MADE)
	rm -rf $(MADE)/rounds validation/$(MACHINE)/suite
	mkdir -p validation/$(MACHINE)
	mv $(MADE) validation/$(MACHINE)/suite
	$(BIN)/python docs/generate.py

clean: ## remove the environment and everything the targets made
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
