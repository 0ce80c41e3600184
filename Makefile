# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else: they set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Attacks of others that the tests compare ours with. Their pins would downgrade requests, and
# tests that miss them are skipped.
ORACLES := eagerpy foolbox torchattacks

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/python scripts/benchmark.py --cfg digits_gan --workers auto

test: lint
	$(BIN)/python -m pytest -n auto

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A half-made .venv has no stamp and is completed by the next call.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(ORACLES)
	touch $@
