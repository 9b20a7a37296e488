# `make setup` needs make and a Python 3.11 with venv, nothing else; everything goes into .venv of this folder.
PYTHON ?= python3.11
TORCH_INDEX ?=
# Test processes at a time; one training session takes up to 1.5 GB.
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.PHONY: setup demo demo-hub kernel test test-fast soak check lock clean

setup: $(STAMP)

$(STAMP): requirements-cpu.txt requirements-cpu-unsloth.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 with venv is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv what requirements-cpu.txt lists; this takes some minutes."
	@$(PYTHON) -m venv .venv
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) "$$(grep '^torch==' requirements-cpu.txt)")
	@$(PIP) -r requirements-cpu.txt
	@$(PIP) --no-deps -r requirements-cpu-unsloth.txt
	@$(PIP) --no-deps -e .
	@touch $@

demo: setup
	@$(BIN)/python -m kaggle_lib.demo

demo-hub: setup
	@PYTHONPATH=tests $(BIN)/python -m support.demo_hub

kernel: setup
	@$(BIN)/python -m kaggle_lib.kaggle.kernel $(KERNEL)

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not soak"

test-fast: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not soak"

soak: setup
	$(BIN)/python -m pytest -m soak

check: setup
	@$(BIN)/python tests/support/house.py

lock: setup
	@PYTHONPATH=tests $(BIN)/python -m support.lock $(LOCK)

# Not `work` and `store`: runs are in there.
clean:
	rm -rf .venv build demo .cache .mypy_cache .ruff_cache .pytest_cache unsloth_compiled_cache *.egg-info
