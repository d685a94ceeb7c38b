# `make serve` and `make test` are all a newcomer needs. Everything is installed into .venv, once: a stamp file beside
# each requirements file's packages remembers it until that file changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
CONFIG ?= config/demo.yaml
ARGS ?=
PATHS ?=
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# Which vLLM: what .venv already holds; in a fresh one, what this machine can use. `make serve ENGINE=cpu` decides by hand.
ENGINE ?= $(or $(patsubst $(VENV)/.engine-%,%,$(wildcard $(VENV)/.engine-*)),$(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu))
ENGINE := $(ENGINE)

.PHONY: help install install-test serve quick test check format figures soak bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  CONFIG=FILE   settings for serve          (default: $(CONFIG))"
	@echo "  ARGS='...'    flags for serve, pytest or the benchmark"
	@echo "  ENGINE=...    cpu or cuda                 (here: $(ENGINE))"
	@echo "  PYTHON=...    what makes .venv            (default: $(PYTHON))"

install: $(VENV)/.project ## make .venv and install what this machine can use

install-test: $(VENV)/.project $(VENV)/.test ## the same and the test tools

serve: $(VENV)/.project ## serve CONFIG; without it a small demo model
	@exec $(VENV)/bin/embedding-service serve --config $(CONFIG) $(ARGS)

# Modules run side by side, see tests/scheduling.py: on two cores three, of which one waits (45 s where two took 60),
# or two where there are engines as well.
unexport PYTHONDONTWRITEBYTECODE # kept, pytest's rewritten asserts save each of them 4 s

quick: export FUZZ_REQUESTS ?= 400
quick: install-test ## run the tests that need no real engine, no other program and no process (a minute)
	@$(VENV)/bin/python -m pytest -q -n 3 -m "not (engine or process or server or soak)" $(ARGS)

test: install-test ## run all tests, real engine included
	@$(VENV)/bin/python -m pytest -q -n 2 --durations=25 $(ARGS)

check: install-test ## ruff, mypy strict, the import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/python -m pytest -q tests/test_layers.py

format: install-test ## let ruff format and repair what it can
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

figures: ## how dense the source is; PATHS=... are measured beside it
	@$(PYTHON) -m benchmarks.figures $(PATHS)

soak: export FUZZ_REQUESTS ?= 100000
soak: install-test ## run what takes long (an hour); writes docs/reliability.md
	@SOAK_REPORT=docs/reliability.md $(VENV)/bin/python -m pytest -m soak --timeout 0 $(ARGS)
	@$(VENV)/bin/python -m pytest --timeout 0 tests/http/test_fuzz.py

bench: install-test ## measure this machine beside vLLM's server and others
	@$(VENV)/bin/python -m benchmarks.run $(ARGS)
	@$(if $(ARGS),,$(VENV)/bin/python -m benchmarks.bulk)

clean: ## remove .venv and everything built
	rm -rf $(VENV) .bench build dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what has been installed -----------------------------------------------------------------------------------------

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyPI's torch 2.13.0 for Linux is the CUDA build, so the CPU build is asked for by its own name: in pip's configured
# sources first and, where they lack it, in PyTorch's index. Only this package is ever looked for there.
$(VENV)/.engine-cpu: requirements-cpu.txt | $(VENV)/pyvenv.cfg
	@test ! -e $(VENV)/.engine-cuda || { echo "$(VENV) holds vLLM for CUDA; 'make clean' first" >&2; exit 1; }
	@echo "Looking for $(TORCH_CPU) in pip's configured sources"
	@$(PIP) install --no-deps '$(TORCH_CPU)' 2>/dev/null || { \
	  echo "Not there; taking it from $(TORCH_CPU_INDEX)"; \
	  $(PIP) install --no-deps --index-url '$(TORCH_CPU_INDEX)' '$(TORCH_CPU)'; }
	$(PIP) install --no-deps -r $<
	@$(VENV)/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || { \
	  echo "vLLM for CPUs needs libnuma: install it (Debian: apt-get install libnuma1) and run make again" >&2; exit 1; }
	@touch $@

$(VENV)/.engine-cuda: requirements.txt | $(VENV)/pyvenv.cfg
	@test ! -e $(VENV)/.engine-cpu || { echo "$(VENV) holds vLLM for CPUs; 'make clean' first" >&2; exit 1; }
	$(PIP) install -r $<
	@touch $@

$(VENV)/.demo: requirements-demo.txt $(VENV)/.engine-$(ENGINE)
	$(PIP) install --no-deps -r $<
	@touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.engine-$(ENGINE)
	$(PIP) install --no-deps -r $<
	@touch $@

# Installed because vLLM finds plugins through installed packages; with the lock's setuptools, so nothing is fetched.
$(VENV)/.project: pyproject.toml $(VENV)/.engine-$(ENGINE) $(VENV)/.demo
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
