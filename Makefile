# Everything runs in .venv/, which `make setup` fills from constraints.txt; a second run does not install again.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup lint test test-slow demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prvr_ray needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/pytest -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

demo: setup
	$(BIN)/prvr demo --root demo-root
