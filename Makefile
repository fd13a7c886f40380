# Everything runs in an environment of its own, made from pinned versions on first use.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Many processes are started, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: run ui test unit matrix soak soak-served clusters lint bench bench-peers clean
.DEFAULT_GOAL := run

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flows,test,bench]'
	touch $@

# The main job: find the most complex functions of Python's own standard library.
run: $(READY)
	$(BIN)/python -m flows.code_audit

# The example in the Prefect UI: a server, a run, the address of its page; Ctrl-C ends it.
ui: $(READY)
	$(BIN)/python -m flows.in_the_ui

# Four files at a time, also on two cores: most tests wait for processes, and share none but with
# those of their file.
test: lint
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

# Seconds, without a cluster.
unit: $(READY)
	$(BIN)/python -m pytest tests/unit

# What `make test` takes a part of, whole: all tests in each combination of their parameters, the
# conformance suite in each of batch, record, workers and runner. An hour and a quarter.
matrix: $(READY)
	EVOLVE_MATRIX=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A hundred rounds in which workers, flows, the scheduler and the API are killed; prints a table.
soak: $(READY)
	$(BIN)/python -m tests.integration.faults --rounds 100

# docs/clusters.md beside all the libraries that it names, in an environment of its own: they are large.
clusters: $(READY)
	$(PYTHON) -m venv $(VENV)/clusters
	$(VENV)/clusters/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,clusters]'
	$(VENV)/clusters/bin/python -m pytest tests/integration/test_clusters_doc.py

# A served flow that is run 120 times: prints what its processes hold, and fails if that grows.
soak-served: $(READY)
	$(BIN)/python -m tests.integration.long_life --runs 120

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Ratios beside plain Dask and the stock runner, measured in one run; writes benchmarks/RESULTS.md.
bench: $(READY)
	$(BIN)/python -m benchmarks

# The same beside Ray, in an environment of its own, and beside Prefect's thread pool.
bench-peers: $(READY)
	$(BIN)/python -m benchmarks.peers

clean:
	rm -rf $(VENV) benchmarks/.venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
