# make demo | test | test-fast | mutants | lint | docs | wheels
#
# Each target creates .venv if it is missing and installs what it needs; a second call installs nothing.
# PYTHON=python3.12 picks another interpreter, VENV=dir another environment, TORCH_INDEX=url another index for torch.

PYTHON ?= $(firstword $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '' 2>/dev/null && echo $$p; done))
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PROJECT := pyproject.toml export/pyproject.toml $(CONSTRAINTS)

.PHONY: demo test test-fast test-3.12 mutants lint docs wheels clean

demo: $(VENV)/.demo
	$(BIN)/cosmos-ref demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --durations 10

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

test-3.12:  ## the oldest torch we promise, on the next Python, where both are to be had
	$(MAKE) test PYTHON=python3.12 VENV=.venv-3.12 CONSTRAINTS=constraints-oldest.txt

mutants: $(VENV)/.dev  ## every equation changed in every small way: do the tests notice? FRESH=1 forgets earlier runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation $(if $(FRESH),--fresh)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

wheels: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m build --wheel --outdir dist export

clean:
	rm -rf $(VENV) dist build site reports *.egg-info export/build export/*.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PROJECT) | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	$(INSTALL) -e ".[export]" -e ./export
	@touch $@

$(VENV)/.dev: $(PROJECT) | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	$(INSTALL) -e ".[dev,export]" -e ./export
	@touch $(VENV)/.demo $@
