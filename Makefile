# Every target works from a fresh clone: `make` builds .venv by itself on the first call.
.DEFAULT_GOAL := help
.PHONY: help setup run test check faults mutants soak bench lock clean

# cpu, gpu or core (no engines); auto takes gpu where nvidia-smi works.
EXTRA ?= auto
JARVIS_VENV ?= .venv
export JARVIS_VENV
BIN := $(JARVIS_VENV)/bin
PYTHON := $(BIN)/python
BENCH ?= queue
# Scaling as in honcho: make run SCALE=generation=2,web=2
SCALE ?=
FULL ?=
ARGS ?=
# Tests that compute little and wait for nobody run beside the others: engines load, faults wait for leases to end.
QUICK := tests/unit tests/conformance tests/producer tests/delivery

help: ## say what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

setup: ## make .venv, or bring it up to date (EXTRA=cpu|gpu|core)
	@python3 ops/bootstrap.py $(EXTRA)

run: setup ## start everything: Redis if none answers, web, scheduler, workers (SCALE=generation=2)
	@$(PYTHON) -m ops.supervise --redis $(if $(SCALE),-c $(SCALE)) $(ARGS)

test: setup ## all tests but the slow fault runs, and the branch coverage of the queue and the worker
	$(BIN)/coverage erase
ifeq ($(ARGS),)
	@$(BIN)/coverage run -m pytest -m "not slow" $(QUICK) > .quick-tests.log 2>&1 & quick=$$!; \
	$(BIN)/coverage run -m pytest -m "not slow" --durations 15 $(addprefix --ignore ,$(QUICK)); status=$$?; \
	wait $$quick || status=1; cat .quick-tests.log; exit $$status
else
	$(BIN)/coverage run -m pytest -m "not slow" --durations 15 $(ARGS)
endif
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='common/*,workers/worker.py' --fail-under=95

check: setup ## format, lint, types over code and tests, import directions
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTHON) -m pytest -q tests/unit/test_layering.py

faults: setup ## every fault run: processes killed, connections cut, Redis restarted; vLLM's load generator (FULL=1: full size, 40 min)
	JARVIS_FAULTS_FULL=$(FULL) $(PYTHON) -m pytest tests/faults tests/openai/test_load_generator.py $(if $(FULL),--timeout 1800) $(ARGS)

mutants: setup ## break more than a hundred promises on purpose, one at a time; each must fail its test
	$(PYTHON) -m tests.faults.mutants

soak: setup ## 30 minutes of random faults under load, counted by a ledger (ARGS="--minutes 3 --seed 1 --json FILE")
	$(PYTHON) -m tests.faults.soak $(ARGS)

bench: setup ## measure (BENCH=queue, latency, fairness, generation, …: python -m ops.bench --help; ARGS="--json FILE")
	$(PYTHON) -m ops.bench $(BENCH) $(ARGS)

lock: setup ## resolve ops/requirements.lock anew
	$(PYTHON) ops/bootstrap.py --lock

clean: ## delete .venv, caches and build leftovers; .jarvis (your data) stays
	rm -rf $(JARVIS_VENV) build dist *.egg-info .coverage .coverage.* .quick-tests.log htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
