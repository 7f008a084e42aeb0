# Everything a newcomer types. `make help` lists it; each target installs what it needs first.
#
# torch is pinned to one release. The default registry's build of it for x86 Linux brings CUDA along (several GB);
# without a GPU, name an index that carries CPU-only builds and pip will prefer those: make setup TORCH_INDEX=<its URL>

VENV ?= .venv
PYTEST_FLAGS ?=
export VENV PYTHON TORCH_INDEX EXTRAS BASE

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Triton lives in an environment of its own; $WOVR_TRITON_VENV names one that is ready, and then none is made here.
ifndef WOVR_TRITON_VENV
TRITON := .venv-triton/.ready
endif

.DEFAULT_GOAL := help
.PHONY: help setup triton libero franka quickstart test test-all stack stack-down images sbom lint format compile clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## prepare this machine: Debian packages if missing, a virtual environment, pinned versions

$(READY): pyproject.toml constraints.txt tools/setup.sh tools/say.sh
	@bash tools/setup.sh
	@touch $@

triton: $(READY) $(TRITON)  ## prepare Triton's own environment (stack and test do it too)

.venv-triton/.ready: $(READY) images/triton/requirements.txt tools/triton-env.sh tools/say.sh
	@bash tools/triton-env.sh
	@touch $@

libero: $(READY)  ## add LIBERO (MuJoCo, 400 MB of meshes) and try its four suites: lay out, step, draw, replay
	@bash tools/libero.sh
	$(BIN)/python -m pytest tests/core/test_libero.py

franka: $(READY)  ## add a simulated Franka cell (libfranka's protocol, MuJoCo, Chromium); try faults, page, blind trials
	@bash tools/franka.sh
	$(BIN)/python -m pytest tests/components/test_robot_arm.py tests/components/test_robot_gateway.py \
		tests/components/test_robot_trials.py tests/components/test_robot_page.py \
		tests/components/test_robot_end_to_end.py tests/components/test_robot_cell_trials.py

quickstart: $(READY)  ## run the whole loop on the tabletop profile: verdict and report (2 cores, some minutes)
	$(BIN)/wovr run tabletop

test: $(READY) $(TRITON)  ## run the tests, three files at a time, for they often wait (PYTEST_FLAGS="-k keyframes" for some)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not long" $(PYTEST_FLAGS)

test-all: $(READY) $(TRITON)  ## run all tests, the long ones too (servers that are killed in the middle, again and again)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

stack: $(READY) $(TRITON)  ## start S3, MLflow and Triton on this machine; what they keep lies in .stack
	$(BIN)/wovr stack up

stack-down: $(READY)  ## stop them; what they keep stays
	$(BIN)/wovr stack down

images:  ## build the container images, try each, tell their sizes (IMAGES="train" for some)
	@bash tools/images.sh $(IMAGES)

sbom:  ## write down what the images are made of, into build/sbom
	@bash tools/sbom.sh

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

clean:  ## remove the environments and caches; runs/, .stack/ and MLflow's data stay
	rm -rf $(VENV) .venv-triton build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
