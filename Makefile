# Two commands for a newcomer: `make run` and `make test`. Both create the environment and install what they need.
# Another Python gets an environment of its own: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
CONSTRAINTS := $(wildcard constraints/py$(VERSION).txt)
INSTALLED := $(VENV)/installed-$(VERSION)
ARGS ?=

.PHONY: run test test-all lint docs mutants install clean

run: install
	$(BIN)/gapsim run $(ARGS)

test: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: install
	$(BIN)/pytest -n 2 --dist loadfile --timeout 1200 $(ARGS)

lint: install
	$(BIN)/pip install --disable-pip-version-check --quiet ruff ty import-linter $(CONSTRAINTS:%=--constraint %)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/ty check && $(BIN)/lint-imports

# The site, with warnings as errors: open docs/_build/html/index.html
docs: install
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[docs]' $(CONSTRAINTS:%=--constraint %)
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# Small wrong changes to the code and how many die, as CONTRIBUTING says: make mutants ARGS="--seed 2"
mutants: install
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[mutants]' $(CONSTRAINTS:%=--constraint %)
	$(BIN)/python tests/mutants.py $(ARGS)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@for other in $(wildcard $(VENV)/installed-*); do test $$other = $@ || { \
	  echo "$(VENV) is of another Python than $(PYTHON); name another environment, as in VENV=.venv-$(VERSION), or make clean" >&2; exit 1; }; done
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[test]' $(CONSTRAINTS:%=--constraint %)
	touch $@

clean:
	rm -rf $(VENV)
