# make demo   install into .venv and run the comparison on the embedded model (no GPU, no network beyond the index)
# make test   the same environment, all tests; ARGS=--shake moves the results of matrix products by an ulp
# make lint   formatter, linter, layers and type checker
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUTPUT ?= demo
WORKERS ?= 2
PLUGIN_PACKAGES := $(patsubst %/__init__.py,%,$(wildcard plugins/*/bigain_*/__init__.py))
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))

.PHONY: install demo test lint clean

install: $(STAMP)

# The constraints name the versions that were tested; torch's is the last that this
# project was run with, and where an index or a wheel folder has a CPU build of it, pip takes that.
$(STAMP): pyproject.toml .ci/constraints.txt .ci/torchvision_on_cpu.py $(PLUGINS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]" $(PLUGINS:%=--editable %)
	$(BIN)/python .ci/torchvision_on_cpu.py
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/bigain compare --config recipes/benchmark/cifar10_demo.yaml --output $(OUTPUT) --resume $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy bigain $(PLUGIN_PACKAGES)

clean:
	rm -rf $(VENV) demo demo.partial .pytest_cache .mypy_cache .ruff_cache
