# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else: they set up .venv first.
# With another version of torch, beside it: `make test TORCH=2.14.1` sets up .venv-2.14.1.

PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-$(TORCH))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := $(VENV)/constraints.txt
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
# Every torchvision asks for the one torch that it was built with, so pip finds the right one.
REPIN := $(if $(TORCH),-e 's/^torch==.*/torch==$(TORCH)/' -e '/^torchvision==/d',-e '')
# What of others the tests compare ours with. Some pins would downgrade what we need, and
# tests that miss them are skipped.
ORACLES := eagerpy foolbox orthogonium pytorch-fid timm torchattacks

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/python scripts/benchmark.py --cfg digits_gan --workers auto

# Stolen work leaves most files whole, so that what their tests share is built by one process.
test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(BIN)/python -m pytest --markdown-docs docs README.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A half-made environment has no stamp and is completed by the next call.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed $(REPIN) constraints.txt > $(CONSTRAINTS)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(ORACLES)
	touch $@
