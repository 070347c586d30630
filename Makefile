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

# Tests that start clusters of their own run in a process without the embedded Ray that the others share.
CLUSTERS := tests/chaos tests/cluster tests/stages/test_jobs.py tests/stages/test_doctor.py
OTHERS := tests $(CLUSTERS:%=--ignore=%)

test: setup
	$(BIN)/pytest -m "not slow" $(OTHERS)
	$(BIN)/pytest -m "not slow" $(CLUSTERS)

SLOW := slow

test-slow: setup
	$(BIN)/pytest -m "$(SLOW)" $(OTHERS)
	$(BIN)/pytest -m "$(SLOW)" $(CLUSTERS)

demo: setup
	$(BIN)/prvr demo --root demo-root
