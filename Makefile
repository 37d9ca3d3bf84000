# Commands for a machine that has Python >= 3.11 and make:
#   make quickstart   data, training, evaluation, report; the last line is the report's path
#   make test         lint, types and tests
#   make test-slow    runs killed and moved between ranks, other people's tools, real weights, README's lines: long
# `make clean` removes what they made. PYTHON=... picks the interpreter, JOBS=... the test processes.

JOBS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed
NUMBERS := data/numbers
RUN := runs/quickstart

# Weights alone, for judging voices; what else it asks for is never imported.
VOICES := resemblyzer==0.1.4

.PHONY: quickstart test test-slow clean

quickstart: $(INSTALLED)
	$(BIN)/mmfm data numbers $(NUMBERS)
	$(BIN)/mmfm train configs/quickstart.py $(if $(wildcard $(RUN)/checkpoints/step-*),--resume)
	$(BIN)/mmfm eval $(RUN)
	@$(BIN)/mmfm report $(RUN)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist loadgroup

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/slow

# The stamp is newer than pyproject.toml when everything that it asks for is installed.
$(INSTALLED): pyproject.toml
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python: installing into .venv; this takes some minutes"; \
			$$python -m venv .venv && $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]' && \
			$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(VOICES) && touch $@; \
			exit $$?; \
		fi; \
	done; \
	echo "make: no Python >= 3.11 with its venv module found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache $(NUMBERS) $(RUN)
	find mmfm tests tools configs experiments -name __pycache__ -prune -exec rm -rf {} +
