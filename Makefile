# make demo   both twins of the arrow maze, end to end      make check  ruff and mypy
# make test   the whole test suite                          make bench  measurements against named peers
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs

.PHONY: demo test check bench install clean

demo: $(VENV)/.installed
	$(BIN)/aitia demo --out $(OUT)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --prefer-binary --editable ".[test,bench]"
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.retraining
	$(BIN)/python -m benchmarks.planted --run $(OUT)/arrow-maze-outer

install: $(VENV)/.installed

# torch first, at the version that was measured: an open range can pull several GB of CUDA packages.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --prefer-binary "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --prefer-binary --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps procgen-mirror==0.10.7 gym3==0.3.3 gym==0.26.2 \
		|| echo "procgen has no wheel for this machine: its tests are skipped"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
