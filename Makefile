# Two commands for a newcomer: `make run` and `make test`. Both create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
CONSTRAINTS := $(wildcard constraints/py$(VERSION).txt)

.PHONY: run test test-all lint install clean

run: install
	$(BIN)/gapsim run

test: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: install
	$(BIN)/pytest -n 2 --dist loadfile --timeout 1200

lint: install
	$(BIN)/pip install --disable-pip-version-check --quiet ruff ty $(CONSTRAINTS:%=--constraint %)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/ty check

install: .venv/installed

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[test]' $(CONSTRAINTS:%=--constraint %)
	touch $@

clean:
	rm -rf .venv
