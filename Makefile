# Two commands do everything: make demo, make test.  See README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv venv-gpu demo test test-full test-postgres bench lint unit mpi-tests lock clean

VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo
MPI_TESTS := tests/parallel
export OMP_NUM_THREADS := 1
export PYTHONDONTWRITEBYTECODE := 1

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(VENV)/.installed  ## virtual environment with the pinned dependencies

$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml
	@./tools/make_venv.sh $(VENV)
	@touch $@

venv-gpu: venv  ## CuPy and the CUDA compiler in it as well (no GPU needed; 130 MB)
	@./tools/add_gpu.sh $(VENV)

demo: venv  ## simulate a survey, process it with 3 MPI ranks, compare with the truth
	@$(BIN)/seechange-mpi demo --dir $(DEMO_DIR)

test: venv-gpu lint unit mpi-tests  ## style, types, imports and all quick tests

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: venv
	@./tools/in_scratch.sh ./tools/unit_tests.sh $(BIN)

# the same tests inside 2 and 3 ranks; a skip of an MPI test is a failure
mpi-tests: venv
	@./tools/in_scratch.sh ./tools/mpi_tests.sh $(BIN) 2 $(MPI_TESTS)
	@./tools/in_scratch.sh ./tools/mpi_tests.sh $(BIN) 3 $(MPI_TESTS)

test-full: test  ## make test and the slow tests
	@./tools/in_scratch.sh $(BIN)/python -m pytest -q -m slow

# BINDIR is the folder of initdb, pg_ctl and postgres
test-postgres: venv  ## the database tests on another PostgreSQL: make test-postgres BINDIR=/usr/lib/postgresql/15/bin
	@SEECHANGE_TEST_PG_BINDIR="$(BINDIR)" ./tools/in_scratch.sh $(BIN)/python -m pytest -q -m "not slow" tests/db

bench: venv  ## benchmarks against rivals; results in docs/benchmarks.md
	@$(BIN)/python -m pip install -q --no-deps --disable-pip-version-check --root-user-action ignore \
	  -r requirements-bench.lock || echo "some rivals could not be installed; their columns stay empty" >&2
	@$(BIN)/python benchmarks/kernels.py
	@$(BIN)/python benchmarks/calibration.py
	@$(BIN)/python benchmarks/scale.py
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/database.py

lock: venv  ## pin today's versions of every dependency
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed '/^seechange/d' > .all.lock
	grep -vE '^(cupy|nvidia-|cuda-|astroscrappy|photutils)' .all.lock > requirements.lock
	if grep -qE '^cupy' .all.lock; then \
	  grep -E '^(cupy|cuda-pathfinder|nvidia-cuda-)' .all.lock > requirements-gpu.lock; fi
	rm -f .all.lock

clean:  ## remove the virtual environment and the demo
	@if [ -d $(DEMO_DIR) ] && [ -x $(BIN)/seechange-mpi ]; then \
	  $(BIN)/seechange-mpi db stop --set paths.root=$(DEMO_DIR)/work || true; fi
	rm -rf $(VENV) $(DEMO_DIR) .mypy_cache .ruff_cache .hypothesis
