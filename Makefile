# Everything a newcomer types. `make help` lists it; each target installs what it needs first.
#
# torch is pinned to one release. The default registry's build of it for x86 Linux brings CUDA along (several GB);
# without a GPU, name an index that carries CPU-only builds and pip will prefer those: make setup TORCH_INDEX=<its URL>

VENV ?= .venv
PYTEST_FLAGS ?=
export VENV PYTHON TORCH_INDEX EXTRAS

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format compile clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## prepare this machine: Debian packages if missing, a virtual environment, pinned versions

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@bash tools/setup.sh
	@touch $@

quickstart: $(READY)  ## run the whole loop on the tabletop profile: verdict and report (2 cores, some minutes)
	$(BIN)/wovr run tabletop

test: $(READY)  ## run all tests (PYTEST_FLAGS="-k keyframes" for some)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)  ## check style, formatting, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: $(READY)  ## compile the pipelines to what Kubeflow takes
	$(BIN)/wovr compile

clean:  ## remove the environment and caches; runs/ and MLflow's data stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
