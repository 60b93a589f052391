# sendfleet: what one does here. `make` alone lists it.
#
# The virtual environment .venv is made on demand from requirements.lock, for tests and checks also from
# requirements-dev.lock. SENDFLEET_BUILD is release, debug or sanitised (see setup.py); a change of it rebuilds the
# kernels.

PYTHON3 ?= python3
BIN := .venv/bin
PYTHON := $(BIN)/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check
SENDFLEET_BUILD ?= release
PYTEST_FLAGS ?=
# Two at a time: the tests that start fleets, which mostly wait, and all others (tests/conftest.py).
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test check bench soak lint format type build kernels debug sanitised clean machine test-servers

help:
	@echo "make demo    a campaign of 10,000 recipients through a two-region fleet on loopback, audited"
	@echo "make test    build, lint, and run all tests"
	@echo "make check   what CI runs and more: format, lint, types, cython-lint, tests"
	@echo "make bench   every benchmark; results go to bench/results (BENCH=name for one)"
	@echo "make soak    the crash tests, over and over (ROUNDS=10), 20,000 messages in flight (MESSAGES=20000), simulated days (DAYS=2000),"
	@echo "             the simulation of failover (SCHEDULES=100000), every drill, and half an hour of random faults (MINUTES=30)"
	@echo "make lint | format | type | build | debug | sanitised | clean"

demo: build
	$(PYTHON) tools/demo.py

test: build .venv/complete-dev test-servers
	ruff format --check --quiet .
	ruff check --quiet .
	cython-lint native
	$(PYTHON) -m pytest -q $(PARALLEL) $(PYTEST_FLAGS)

check: build lint type test-servers
	$(PYTHON) -m pytest -q $(PARALLEL) $(PYTEST_FLAGS)

lint: .venv/complete-dev
	ruff format --check .
	ruff check .
	cython-lint native

format: .venv/complete-dev
	ruff format .
	ruff check --fix .

type: .venv/complete-dev
	mypy

bench: build .venv/complete-dev test-servers
	$(PYTHON) -m bench $(BENCH)

ROUNDS ?= 10
MESSAGES ?= 20000
DAYS ?= 2000
SCHEDULES ?= 100000
MINUTES ?= 30
soak: build .venv/complete-dev test-servers
	@for round in $$(seq $(ROUNDS)); do \
		echo "round $$round of $(ROUNDS)"; \
		$(PYTHON) -m pytest -q -m "crash and not ray" $(PYTEST_FLAGS) || exit 1; \
	done
	SENDFLEET_SIMULATED_DAYS=$(DAYS) $(PYTHON) -m pytest -q $(PYTEST_FLAGS) tests/property/test_pool_invariants.py
	SENDFLEET_SOAK=1 nice -n 19 $(PYTHON) -m pytest -q $(PYTEST_FLAGS) tests/simulation
	nice -n 19 $(PYTHON) -m tests.simulation --schedules $(SCHEDULES)
	nice -n 19 $(PYTHON) -m tests.simulation.handover 1-$(SCHEDULES)
	nice -n 19 $(PYTHON) -m tests.simulation.overload 1-$(SCHEDULES)
	SENDFLEET_CRASH_MESSAGES=$(MESSAGES) SENDFLEET_CRASH_ROUNDS=$(ROUNDS) SENDFLEET_FAILOVER_ROUNDS=$(ROUNDS) \
		$(PYTHON) -m pytest -q -rP -m "crash and ray" $(PYTEST_FLAGS)
	$(PYTHON) -m bench.drills
	$(PYTHON) -m bench.soak --minutes $(MINUTES)

build: .venv/complete
	@$(MAKE) --no-print-directory kernels

# Needs Cython and setuptools only.
kernels:
	@mkdir -p build
	@if [ "$$(cat build/kind 2>/dev/null)" = "$(SENDFLEET_BUILD)" ]; then force=; else force=--force; fi; \
	SENDFLEET_BUILD=$(SENDFLEET_BUILD) $(PYTHON) setup.py --quiet build_ext --inplace --parallel 2 $$force
	@echo $(SENDFLEET_BUILD) > build/kind

debug:
	$(MAKE) build SENDFLEET_BUILD=debug

# The runtimes of the sanitizers come first in the process; Python's own small-object allocator would hide overruns, and what
# the interpreter keeps to its end is not a leak of ours.
sanitised: .venv/complete-dev
	$(MAKE) build SENDFLEET_BUILD=sanitised
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
		$(PYTHON) -m pytest -q -p no:cacheprovider tests/unit/native tests/property/test_replies.py \
		tests/property/test_scheduler.py tests/property/test_dkim.py $(PYTEST_FLAGS)
	$(MAKE) build

# The kernels are compiled while everything else is installed; pip is told to leave them alone.
.venv/complete: requirements.lock pyproject.toml
	@tools/check_machine.sh $(PYTHON3)
	test -x $(PYTHON) || $(PYTHON3) -m venv .venv
	$(PIP) $$(grep -iE '^(cython|setuptools)==' requirements.lock)
	@$(MAKE) --no-print-directory kernels & kernels=$$!; \
	{ $(PIP) -r requirements.lock && \
	SENDFLEET_BUILD=none PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation -e .; }; installed=$$?; \
	wait $$kernels && exit $$installed
	@touch $@

.venv/complete-dev: .venv/complete requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	@touch $@

machine:
	@tools/check_machine.sh $(PYTHON3)

test-servers:
	@tools/install_test_servers.sh

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis var
	rm -f native/*.c native/*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
