# make demo   both twins of the arrow maze, end to end      make check  ruff and mypy
# make test   the whole test suite                          make bench  measurements against named peers
# make install   everything into VENV, at the versions of constraints.txt; CONSTRAINTS= takes the newest that pyproject.toml
# allows (docs/maintenance.md: .ci/run-latest); make constraints   write down what VENV holds
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs
CONSTRAINTS ?= constraints.txt
# torch first, at the version that was measured: an open range can pull several GB of CUDA packages.
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --prefer-binary $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test check bench install constraints clean

demo: $(VENV)/.installed
	$(BIN)/aitia demo --out $(OUT)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(PIP) --editable ".[test,bench]"
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.retraining
	$(BIN)/python -m benchmarks.planted --out $(OUT)/planted

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps procgen-mirror==0.10.7 gym3==0.3.3 gym==0.26.2 \
		|| echo "procgen has no wheel for this machine: its tests are skipped"
	touch $@

constraints:
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .constraints.new
	(echo "# What the tests were last run with; docs/maintenance.md says how to renew it."; cat .constraints.new) > constraints.txt
	rm .constraints.new

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
