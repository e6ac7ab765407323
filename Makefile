# The environment for everything below; the first target that needs it makes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-oldest lint format bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/anomalib test --config configs/demo.yaml
	@echo "Pictures: $$(readlink -f results/AnoVL/DemoSurfaces/brick/latest)/images"

# Two processes of one thread each keep two cores busier than one process of two threads. In the order of their names
# files are dealt out more evenly than by how many tests they have: those with few are the slowest.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same model on the oldest open_clip that anomalib's own clip extra allows; fetches it.
OLDEST := $(VENV)/open_clip-2.23.0
test-oldest: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST) open_clip_torch==2.23.0
	PYTHONPATH=$(OLDEST) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		tests/unit/vision/test_backbone.py tests/unit/vision/test_value_attention.py tests/unit/text/test_text_bank.py tests/unit/test_torch_model.py \
		tests/unit/vision/test_architectures.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build dist results runs report openvino_cache .pytest_cache .ruff_cache .hypothesis
