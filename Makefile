# make mnist       train a network on handwritten digits and show what was fused
# make sentiment   the same for sentences: positive or negative?
# make test        the whole test suite           make lint    ruff and mypy
# make bench       speed beside other frameworks  make docs    the documentation site, in out/site
# make clean       remove everything that was made here
#
# Needs Python >= 3.11, make and a package registry; all else goes into .venv. Options for an example:
#   make mnist ARGS="--model lenet --data DIR"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: mnist sentiment test lint bench docs wheel clean

mnist: $(VENV)/.examples
	$(BIN)/python -m examples.mnist $(ARGS)

sentiment: $(VENV)/.examples
	$(BIN)/python -m examples.sentiment $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: ruff format-check types

.PHONY: ruff format-check types
ruff: $(VENV)/.dev
	$(BIN)/ruff check .

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check --output-format concise .

# mypy resolves imports by folders, so it is shown the layout of an installation: fusegraph/ with passes/ and codegen/
# inside. Its messages are turned back into paths of the checkout.
types: $(VENV)/.dev .typecheck
	$(BIN)/python -m mypy | sed -E 's,^\.typecheck/fusegraph/(passes|codegen)/,\1/,; s,^\.typecheck/,,'

.PHONY: .typecheck
.typecheck:
	@rm -rf .typecheck && mkdir -p .typecheck/fusegraph
	@ln -s $(CURDIR)/fusegraph/* $(CURDIR)/passes $(CURDIR)/codegen .typecheck/fusegraph/

bench: $(VENV)/.rivals
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

# A stamp says which extras are installed, so that a second call starts at once; a change of pyproject.toml redoes it.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"fusegraph needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[examples]'
	@touch $@

# The tests compile CUDA kernels, which needs no GPU but the wheels of the extra `cuda`: there are some for x86-64 with Linux.
# Elsewhere, and where they cannot be fetched, the tests of that part say why they skip.
PLATFORM := $(shell uname -s)-$(shell uname -m)
WITH_CUDA := $(if $(filter Linux-x86_64,$(PLATFORM)),yes)

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
ifdef WITH_CUDA
	$(PIP) install --quiet --editable '.[dev,examples,cuda]' || { \
	  echo "the CUDA wheels do not install here: tests that compile CUDA kernels will be skipped"; \
	  $(PIP) install --quiet --editable '.[dev,examples]'; }
else
	$(PIP) install --quiet --editable '.[dev,examples]'
endif
	@touch $@ $(VENV)/.examples

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[docs]'
	@touch $@

# What the benchmarks compare with. Each is optional: one that does not install is reported as such. (ziglang: tinygrad needs clang.)
$(VENV)/.rivals: $(VENV)/.dev
	$(PIP) install --quiet torch==2.13.0 || $(PIP) install --quiet torch || echo "torch does not install here: left out"
	$(PIP) install --quiet jax || echo "JAX does not install here: left out"
	$(PIP) install --quiet tinygrad ziglang || echo "tinygrad does not install here: left out"
	@touch $@

clean:
	rm -rf $(VENV) .typecheck build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
