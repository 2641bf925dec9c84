# `make demo` shows what privtrain does; `make test` says whether it works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Third parties that would call home, and threads that would fight over two cores.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Empty is off: tests start many processes, which would compile every file again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo test quick lint docs coverage mutants clean

help:
	@echo "make demo    train on embedded data in five ways, print the table, write a report"
	@echo "make test    ruff, mypy, documentation and the whole test suite (about a quarter of an hour)"
	@echo "make quick   the same without slow tests (about two minutes)"
	@echo "make docs    the documentation as pages, in site/"
	@echo "make coverage  the whole test suite, and which lines no test reaches"
	@echo "make mutants   changes lines that make promises, one by one, and looks whether a test fails"

# The environment is made anew only when what it is made of has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "privtrain needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Setting up $(VENV): a few minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# CrypTen depends on a retired package name and cannot be installed with its dependencies.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps crypten
	touch $@

demo: $(STAMP)
	$(BIN)/privtrain compare --data digits --trainers sgd fedavg dp_sgd mpc_sgd pate --epsilon 3 --out runs/demo --force

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint docs
	$(BIN)/python -m pytest

quick: lint
	$(BIN)/python -m pytest -m "not slow"

coverage: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-context=test --cov-report=term --cov-report=json:coverage.json

# Only tests that reach the changed line run, where `make coverage` has said which these are.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants run tests/mutants.json $(if $(wildcard .coverage),--coverage .coverage)

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site runs .coverage coverage.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
