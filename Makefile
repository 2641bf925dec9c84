# `make demo` shows what privtrain does; `make test` says whether it works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.demo
STAMP := $(VENV)/.installed
# An environment without any extra.
BARE := .venv-bare
BARE_STAMP := $(BARE)/.installed
BARE_TESTS := tests/laws/test_base.py tests/laws/test_kinds.py tests/core/test_extras.py \
	tests/command tests/report/test_table.py tests/trainers/test_sgd.py tests/test_public_names.py

# Third parties that would call home, and threads that would fight over two cores.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Empty is off: tests start many processes, which would compile every file again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo test quick bare lint docs stale coverage mutants tamper clean

help:
	@echo "make demo    train on embedded data in five ways, print the table, write a report"
	@echo "make test    ruff, mypy, documentation and the whole test suite (about a quarter of an hour)"
	@echo "make quick   the same without slow tests (about two minutes)"
	@echo "make bare    quick tests of what the base installation can do, in an environment without extras"
	@echo "make docs    the documentation as pages, in site/"
	@echo "make stale   which pages quote figures that no longer follow from their commands"
	@echo "make coverage  the whole test suite, and which lines no test reaches"
	@echo "make mutants   changes lines that make promises, one by one, and looks whether a test fails"
	@echo "make tamper  changes every message of programs on shares in every way, and counts what came of it"

# Files are compiled on first use: most of what is installed is never imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

# Environments are made anew only when what they are made of has changed.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "privtrain needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Setting up $(VENV): a minute or two, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[plots]'
	touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "Adding what tests and documentation need."
	$(PIP) --editable '.[dev]'
	@# CrypTen depends on a retired package name and cannot be installed with its dependencies.
	$(PIP) --no-deps crypten
	touch $@

# Made anew as a whole: a package that is no longer needed must not stay behind.
$(BARE_STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(BARE): the base installation alone."
	rm -rf $(BARE)
	$(PYTHON) -m venv $(BARE)
	$(subst $(BIN),$(BARE)/bin,$(PIP)) torch
	$(subst $(BIN),$(BARE)/bin,$(PIP)) --editable '.[test]'
	touch $@

bare: $(BARE_STAMP)
	$(BARE)/bin/python -m pytest -m "not slow" $(BARE_TESTS)

demo: $(DEMO_STAMP)
	$(BIN)/privtrain compare --data digits --parties 40 --trainers sgd fedavg dp_sgd mpc_sgd pate \
		--epsilon 3 --attacks loss_threshold row_span --set mpc_sgd.epochs=20 --out runs/demo --force

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint docs bare
	$(BIN)/python -m pytest

quick: lint
	$(BIN)/python -m pytest -m "not slow"

coverage: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-context=test --cov-report=term --cov-report=json:coverage.json

# Only tests that reach the changed line run, where `make coverage` has said which these are.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants run tests/mutants.json $(if $(wildcard .coverage),--coverage .coverage)

# One worker, or the tables would not be printed.
tamper: $(STAMP)
	$(BIN)/python -m pytest -m tamper -n 0 -s tests/mpc/test_tamper.py

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

# A page is stale where it differs from its kept result, or where the code has changed since.
stale: $(STAMP)
	@$(BIN)/python -m tests.docs.figures stale

clean:
	rm -rf $(VENV) $(BARE) site runs .coverage coverage.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
