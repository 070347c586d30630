# Everything runs in .venv/, which `make setup` fills from constraints.txt; a second run does not install again.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# --system-site-packages: use packages that this Python has, such as a CPU-only torch
VENV_OPTIONS ?=

.PHONY: setup lint test test-beside-ray test-through-ray test-slow demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prvr_ray needs Python 3.11 or newer")'
	@echo "make setup: installing prvr_ray and what it needs into .venv/: some 3 GB to download, 7 GB on disk,"
	@echo "nearly all of it torch with its CUDA libraries (the README says how to use a smaller torch)"
	@begun=$$(date +%s) && $(PYTHON) -m venv $(VENV_OPTIONS) .venv && $(BIN)/pip install --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]' && echo "make setup: done in $$(($$(date +%s) - begun)) s"
	@touch $(READY)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests that start Ray run beside those that do not: starting its processes leaves a core idle. Tests that start
# clusters of their own run in a process without the embedded Ray that the others share.
CLUSTERS := tests/chaos tests/cluster tests/stages/test_submit.py tests/stages/test_doctor.py
EMBEDDED := tests/stages tests/test_demo.py tests/test_devices.py tests/test_readme_runs.py
WITHOUT := tests $(CLUSTERS:%=--ignore=%) $(EMBEDDED:%=--ignore=%)
EMBEDDED += $(CLUSTERS:%=--ignore=%)

test: setup
	@echo 'make test: two processes; each prints when it is done'
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-through-ray test-beside-ray

test-beside-ray:
	$(BIN)/pytest -m "not slow" $(WITHOUT)

test-through-ray:
	$(BIN)/pytest -m "not slow" $(EMBEDDED)
	$(BIN)/pytest -m "not slow" $(CLUSTERS)

SLOW := slow

test-slow: setup
	$(BIN)/pytest -m "$(SLOW)" $(WITHOUT)
	$(BIN)/pytest -m "$(SLOW)" $(EMBEDDED)
	$(BIN)/pytest -m "$(SLOW)" $(CLUSTERS)

demo: setup
	$(BIN)/prvr demo --root demo-root
