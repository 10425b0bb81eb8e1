# `make demo` and `make test` work on a fresh machine: python3 with venv, make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs install clean

demo: install
	$(BIN)/fewshot demo

test: install
	$(BIN)/pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W -n --keep-going -q docs build/docs

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .*_cache
