# Run `make` for a list of the targets. The first target that needs the environment creates it.
PYTHON ?= python3
VENV ?= .venv
PROCESSES ?= 2
BIN := $(VENV)/bin
# Two processes of one thread each keep two cores busier than one process of two threads. Distributing files in the order
# of their names balances the load better than by number of tests, because files with few tests are the slowest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help format lint typecheck test test-fast test-oldest test-lowest coverage bench bench-gpu docs demo all clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

format: $(VENV)/installed  ## Fix style and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/installed  ## Check style, format, YAML files, and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-yaml .pre-commit-config.yaml $$(find configs -name '*.yaml')
	$(BIN)/codespell

typecheck: $(VENV)/installed  ## Check the types of the package
	$(BIN)/mypy

test: $(VENV)/installed  ## Run all tests
	$(PYTEST)

test-fast: $(VENV)/installed  ## Run the unit tests except the slow ones
	$(PYTEST) tests/unit -m "not slow"

# The oldest open_clip that anomalib's own clip extra allows.
OLDEST := $(VENV)/open_clip-2.23.0
test-oldest: $(VENV)/installed  ## Run the tests that use open_clip on its oldest version
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST) open_clip_torch==2.23.0
	PYTHONPATH=$(OLDEST) $(PYTEST) -W default tests/unit/vision tests/unit/text tests/unit/test_torch_model.py

# The lowest versions precede the installed ones, which remain for torch and for indirect dependencies. pytest would load
# a plugin of the installed platformdirs that the lowest version does not have.
LOWEST := $(VENV)/lowest
test-lowest: $(VENV)/installed  ## Run the unit tests on the lowest versions that pyproject.toml allows
	rm -rf $(LOWEST)
	$(BIN)/python -m pip install --quiet --no-deps --target $(LOWEST) $$($(BIN)/python -m tests.helpers.requirements)
	PYTHONPATH=$(LOWEST) $(BIN)/python -m tests.helpers.requirements --check $(LOWEST)
	PYTHONPATH=$(LOWEST) $(PYTEST) -p no:platformdirs -W default tests/unit

# Only what runs in pytest's own processes is measured, so the floor holds without commands, forks and distributed runs.
# These modules start most of those.
OTHER_PROCESSES := configs documentation gallery guide hardware installation old_open_clip playground predict processes prompts registration
MEASURED := $(filter-out $(OTHER_PROCESSES:%=tests/integration/test_%.py), $(wildcard tests/integration/test_*.py))
coverage: $(VENV)/installed  ## Run the tests that run in process and fail if they miss too many lines or branches
	$(PYTEST) --cov --cov-report=term --cov-report=html $(MEASURED) tests/unit

bench: $(VENV)/installed  ## Measure speed and memory, half an hour on an idle machine, and write docs/benchmark.md
	$(BIN)/python -W ignore -m tests.benchmarks --markdown docs/benchmark.md --plot docs/images/benchmark-growth.png

bench-gpu: $(VENV)/installed  ## Measure what needs a GPU, in minutes, and write docs/benchmark.md
	$(BIN)/python -W ignore -m tests.benchmarks --suite bench-gpu --device cuda --markdown docs/benchmark.md

docs: $(VENV)/installed  ## Run the examples of the docs and docstrings, and check the docs against the code
	$(PYTEST) README.md docs anovl_plugin tests/unit/test_architecture.py tests/unit/test_argument_documentation.py \
		tests/integration/test_documentation.py tests/integration/test_guide.py

demo: $(VENV)/installed  ## Test AnoVL with anomalib on photographs with painted defects
	$(BIN)/anomalib test --config configs/demo.yaml
	@echo "Pictures: $$(readlink -f results/AnoVL/DemoSurfaces/brick/latest)/images"

all: lint typecheck test test-oldest test-lowest  ## Run everything that continuous integration runs

clean:  ## Remove the environment and everything that was built or written
	rm -rf $(VENV) build dist results runs report openvino_cache htmlcov .coverage .coverage.*
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
