# Works on a fresh machine with Python 3.11, 3.12 or 3.13 and nothing else: the environment is made here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow reliability check schema constraints ui
.DEFAULT_GOAL := quickstart

# nlt and its development tools at the pinned versions; byte-compiled, because importing torch and mlflow otherwise
# takes 12 seconds the first time.
$(BIN)/nlt: pyproject.toml docker/constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), "nlt needs Python 3.11 to 3.13: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --compile -c docker/constraints.txt -e '.[dev]'
	touch $@

quickstart: $(BIN)/nlt  ## four methods on digits with 40 % wrong labels, the comparison, and wrong labels in a folder
	$(BIN)/nlt launch experiments/quickstart/*.json
	$(BIN)/nlt compare quickstart
	$(BIN)/python docs/planted_digits.py digits
	$(BIN)/nlt detect digits --backbone pixels

test: $(BIN)/nlt
	$(BIN)/python -m pytest

test-slow: $(BIN)/nlt
	$(BIN)/python -m pytest -m 'not gpu'

reliability: $(BIN)/nlt  ## kills, faults, full disks, bad input: counted, and written to docs/reliability.md
	rm -f .reliability.jsonl
	NLT_RELIABILITY=$(CURDIR)/.reliability.jsonl $(BIN)/python -m pytest -m 'not gpu' \
	    tests/test_crash.py tests/test_full_disk.py tests/test_faults.py tests/test_fuzz*.py tests/test_checkpoint.py tests/test_resume.py
	$(BIN)/python docs/reliability.py .reliability.jsonl

check: $(BIN)/nlt  ## format, lint, types, order of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: $(BIN)/nlt
	$(BIN)/nlt ui

constraints:  ## docker/constraints.txt for all supported Pythons; ARGS=--upgrade takes newer versions; needs uv
	uv pip compile pyproject.toml --extra heic --extra server --extra ray --universal --python-version 3.11 --no-annotate --no-emit-index-url $(ARGS) -o docker/constraints.txt

schema: $(BIN)/nlt  ## after a change of settings
	$(BIN)/nlt schema > nlt/schema.json
