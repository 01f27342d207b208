# Everything a developer or a newcomer runs. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The interpreter that creates the environment: 3.11 or 3.12.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV_PIN := uv==0.13.8

# Bytecode is compiled once at installation; a shell that forbids it would recompile it in every process.
unexport PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE = 1
export UV_LINK_MODE = copy
export VIRTUAL_ENV = $(CURDIR)/$(VENV)

.PHONY: help install lint format test test-faults demo airflow up down bench lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create .venv from the hashed lock and install the package

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or 3.12 is needed. Way out: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(UV_PIN)
	$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lint: install ## Check style, imports, types and the lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pipeline

format: install ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install ## Run all tests
	$(BIN)/pytest -n 2 --dist loadfile

test-faults: install ## Run every fault attack at full scale (about half an hour); figures in benchmarks/out/faults.json
	PIPELINE_FAULTS=full $(BIN)/pytest tests/faults --durations=15 --timeout=3600

demo: install ## Run the whole loop through a real Airflow: JOB=file FROM=date TO=date for your own job
	$(BIN)/python -m examples.demo $(if $(JOB),--job $(JOB)) $(if $(FROM),--from $(FROM)) $(if $(TO),--to $(TO))

airflow: install ## Open the Airflow UI on the demo's state until Ctrl-C
	$(BIN)/python -m deploy.local_airflow --home .demo --jobs .demo/jobs

up: ## Start the deployed stack (Docker Compose)
	deploy/bootstrap
	docker compose up --build --detach --wait

down: ## Stop the deployed stack; data stays
	docker compose down

bench: install ## Measure what the documentation claims; JSON under benchmarks/out
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.history
	$(BIN)/python -m benchmarks.one_run
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.throughput --models gradient_boosting --only product --repeats 2 \
		--rows 2000000 20000000 100000000 --out benchmarks/out/sizes.json
	$(BIN)/python -m benchmarks.throughput.page

clean: ## Remove the environment and the demo
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache

lock: install ## Resolve the dependencies again and write requirements.lock
	rm -f requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra postgres --extra s3 --extra ray --group dev --universal \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --output-file requirements.lock
