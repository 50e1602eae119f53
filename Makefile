# Two promises: `make demo` and `make test` work on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
TORCH_INDEX ?=
AUDIT ?=
RUN := .venv/bin/python
TRAINING_FLOWS := tests/flows/test_train_saes.py tests/flows/test_training_nodes.py
MODEL_FLOWS := tests/flows/test_compare_models.py tests/flows/test_fine_tuned.py tests/flows/test_probe.py
INTERRUPTIONS := tests/flows/test_interruptions.py
SERVING := tests/flows/test_serving.py
KILLS := tests/flows/test_operations_kills.py
STORAGE := tests/flows/test_object_storage.py
RETRIES := tests/flows/test_operations_retry.py tests/flows/test_operations_secrets.py tests/flows/test_operations_slots.py
TOKENS := tests/flows/test_correlate_tokens.py
OPERATIONS := tests/flows/test_operations.py
FAN_OUT := tests/flows/test_fan_out.py
POSTGRES := tests/flows/test_postgres.py
CLUSTER := tests/flows/test_compose_lab.py tests/flows/test_kubernetes_pools.py tests/flows/test_fan_out_futures.py
OWN_TARGET := tests/flows tests/browser tests/peers tests/vllm tests/benchmarks tests/audit tests/docs
OTHER_FLOWS := $(TRAINING_FLOWS) $(MODEL_FLOWS) $(INTERRUPTIONS) $(SERVING) $(TOKENS) $(OPERATIONS) $(KILLS) $(RETRIES) $(STORAGE) $(FAN_OUT) $(POSTGRES) $(CLUSTER)

.PHONY: help install demo test test-flows test-slow test-interruptions test-serving test-operations test-retries test-kills test-storage test-health test-tokens test-models test-training test-browser peers test-peers test-saebench vllm test-vllm test-triton bench-training bench-health bench-enrichment bench-clients bench-dashboard check format clean dist audit test-audit docs test-docs bench-scaling test-fan-out test-postgres test-cluster bench-fan-out bench-postgres
help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: .venv/.installed ## create .venv and install (TORCH_INDEX=URL picks the index torch comes from)

.venv/.installed: pyproject.toml constraints.txt deployments/install.py
	$(PYTHON) deployments/install.py --torch-index "$(TORCH_INDEX)"

demo: .venv/.installed ## train, explain, score and compare on a real model; ends in an HTML report
	$(RUN) -m flows.cli demo

test: .venv/.installed ## the test suite
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow" $(OWN_TARGET:%=--ignore %)

test-flows: .venv/.installed ## the command line and the flows on a real Prefect server
	$(RUN) -m pytest -m "not slow" tests/flows

test-slow: .venv/.installed ## kill-and-resume and packaging tests
	$(RUN) -m pytest -m slow tests/flows tests/test_packaging.py tests/test_notebook.py $(OTHER_FLOWS:%=--ignore %)

test-interruptions: .venv/.installed ## explaining and scoring with the run, the server or the network gone in the middle
	$(RUN) -m pytest -m slow $(INTERRUPTIONS)

test-serving: .venv/.installed ## servers that a run starts and stops, killed at any point
	$(RUN) -m pytest -m slow $(SERVING)

test-operations: .venv/.installed ## a Prefect server with a password, its workers, and runs started from another folder
	$(RUN) -m pytest -m slow $(OPERATIONS)

test-retries: .venv/.installed ## failed layers retried on a server and a worker; slots; secrets
	$(RUN) -m pytest -m slow $(RETRIES)

test-kills: .venv/.installed ## a server, a worker, runs and their processes killed and cancelled in the middle
	$(RUN) -m pytest -m slow $(KILLS)

test-storage: .venv/.installed ## artifacts in a bucket: kills while sending and fetching, a whole flow, other machines
	$(RUN) -m pytest -m slow tests/storage $(STORAGE)
test-fan-out: .venv/.installed ## steps in the processes of a Dask cluster, whose parts are killed
	$(RUN) -m pytest -m slow $(FAN_OUT)

test-postgres: .venv/.installed ## a Prefect server on PostgreSQL; skipped where that is not installed
	$(RUN) -m pytest -m slow $(POSTGRES)

test-cluster: .venv/.installed ## the services of docker/compose.yaml as processes, pools for Kubernetes, what becomes of tasks on Dask
	$(RUN) -m pytest -m slow $(CLUSTER)

test-health: .venv/.installed ## absorption, sparse probing and layer health on a real model
	$(RUN) -m pytest -m slow tests/health tests/compare

test-tokens: .venv/.installed ## latents associated with tokens: nulls, planted truth, whole flows
	$(RUN) -m pytest -m slow tests/enrichment $(TOKENS)

test-models: .venv/.installed ## models compared end to end: tokenizers, controls, a fine-tuned pair
	$(RUN) -m pytest -m slow $(MODEL_FLOWS)

test-training: .venv/.installed ## training and capture killed at random points, streamed, by several processes
	$(RUN) -m pytest -m slow tests/sae tests/subject $(TRAINING_FLOWS)

test-browser: .venv/.installed ## the report in headless Chromium; skipped where there is none
	$(RUN) -m pytest tests/browser

peers: .venv-peers/.installed ## the SAE trainers and SAEBench that we compare with, in .venv-peers (1.7 GB)

.venv-peers/.installed: tests/peers/constraints.txt deployments/peers.py
	$(PYTHON) -m deployments.peers --torch-index "$(TORCH_INDEX)"

test-peers: .venv/.installed .venv-peers/.installed ## SAE folders exchanged with sparsify and SAELens, health with SAEBench
	$(RUN) -m pytest tests/peers

test-saebench: .venv/.installed .venv-peers/.installed ## layer health beside SAEBench's own functions on the same rows
	$(RUN) -m pytest tests/peers/test_saebench.py

vllm: .venv-vllm/.installed ## the CPU build of vLLM, in .venv-vllm (3.2 GB)

.venv-vllm/.installed: tests/vllm/constraints.txt deployments/vllm.py
	$(PYTHON) -m deployments.vllm --torch-index "$(TORCH_INDEX)"

test-vllm: .venv/.installed .venv-vllm/.installed ## a real vLLM, started, asked, killed and stopped by our own flow
	$(RUN) -m pytest tests/vllm

test-triton: .venv/.installed ## the CUDA kernels, interpreted on the CPU and compiled for GPUs that are not here
	$(RUN) -m pip install -q --no-deps --target .venv-triton "triton==3.7.1"
	PYTHONPATH=.venv-triton $(RUN) -m pytest tests/sae/test_triton.py

bench-training: .venv/.installed .venv-peers/.installed ## training speed, quality and memory against the peers
	$(RUN) tests/benchmarks/training.py $(BENCH)

bench-health: .venv/.installed .venv-peers/.installed ## layer health of three layers against SAEBench's loop
	$(RUN) tests/benchmarks/health.py $(BENCH)

bench-enrichment: .venv/.installed ## associations, nulls and half-samples at full size, and a loop over SciPy
	$(RUN) tests/benchmarks/enrichment.py $(BENCH)

bench-clients: .venv/.installed .venv-vllm/.installed ## LLM clients on one vLLM: ours, vLLM's bench client, delphi
	.venv-vllm/bin/python -m pip install -q --no-deps --target .venv-vllm/delphi -r tests/benchmarks/delphi.txt
	$(RUN) tests/benchmarks/clients.py $(BENCH)

bench-scaling: .venv/.installed ## how the time of each step grows with layers, tokens and latents
	$(RUN) tests/benchmarks/scaling.py $(BENCH)

bench-dashboard: .venv/.installed ## a report of 50,000 latents in headless Chromium
	$(RUN) tests/benchmarks/dashboard.py $(BENCH)

docs: .venv/.installed ## the documentation as a site in build/docs
	$(RUN) -m mkdocs build --quiet --strict

test-docs: .venv/.installed ## every command of the documentation typed, its settings and links checked, its site built
	$(RUN) -m pytest tests/docs
bench-fan-out: .venv/.installed ## one flow, and tasks that compute nothing, on threads and on a Dask cluster
	$(RUN) tests/benchmarks/fan_out.py $(BENCH)
bench-postgres: .venv/.installed ## hundreds of tasks, with the Prefect server on SQLite and on PostgreSQL
	$(RUN) tests/benchmarks/database.py $(BENCH)

check: .venv/.installed ## formatting, lint, types, import direction
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -c "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"

format: .venv/.installed ## format the sources
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

dist: .venv/.installed ## the source archive, and the wheel that is built from it, in dist/
	rm -rf dist
	$(RUN) -m hatchling build -t sdist -d dist
	$(RUN) -m pip wheel -q --no-deps --no-build-isolation -w dist dist/*.tar.gz
	@ls -l dist

audit: .venv-audit/.installed ## known vulnerabilities of what constraints.txt pins; fails where one was not looked up
	$(PYTHON) -m deployments.audit $(AUDIT)

.venv-audit/.installed: tests/audit/constraints.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q --no-deps -r tests/audit/constraints.txt
	touch $@

test-audit: .venv/.installed .venv-audit/.installed ## make audit, with an advisory service of its own
	$(RUN) -m pytest tests/audit

clean: ## remove what installing and running made
	rm -rf .venv .venv-audit .venv-peers .venv-vllm .venv-triton runs build dist *.egg-info
