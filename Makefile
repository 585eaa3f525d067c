# Flowstack, from a clean clone: "make demo" to see it, "make test" to check it. Each sets up what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# More words for pytest, as in: make test ARGS="tests/usage -x"
ARGS   ?=
# How many processes run the tests; two more than there are cores, as the long ones wait. Each file's tests stay in one.
JOBS   ?= $(shell echo $$(($$(nproc) + 2)))
PYTEST = $(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(REST)

# What the tests call, and Debian's package of it.
TEST_PACKAGES := chromium=chromium curl=curl go=golang-go /usr/bin/python3=python3 nginx=nginx haproxy=haproxy wrk=wrk redis-server=redis-server postgres=postgresql \
	useradd=passwd libseccomp.so.2=libseccomp2 systemd-analyze=systemd systemd-socket-activate=systemd systemd-sysusers=systemd systemd-tmpfiles=systemd

# What reads the files that are offered for Kubernetes and Compose.
TEST_PACKAGES += docker-compose=docker-compose kubectl=kubernetes-client openssl=openssl promtool=prometheus

# make test BUILD=compiled: in a copy of what the tests need, where the compiled wheel lies in place of the sources.
BUILD  ?= pure
TREE   := build/compiled
ifeq ($(BUILD),compiled)
TESTED := $(TREE)
RUN    := cd $(TREE) && PYTHONPATH=$(abspath $(TREE)) FLOWSTACK_BUILD=compiled $(abspath $(BIN))/python
# What runs no module of Flowstack's in this Python, reads the sources as they are, or makes classes of compiled ones.
REST   := --ignore tests/packaging --ignore tests/bench --ignore tests/test_imports.py --ignore tests/test_manual.py \
	--ignore tests/http/test_sse.py
else
RUN    := $(BIN)/python
endif

# Installed once, and again when what is to be installed has changed.
SETUP := $(VENV)/.flowstack-setup

.DEFAULT_GOAL := help
.PHONY: $(TREE) help setup demo test check lint bench bench-quick bench-reports bench-shared bench-scaling bench-shipping bench-waiting instructions docs diagrams screenshots settings constraints prices wheel clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP) ## Make .venv with Flowstack and all that its tests need

$(SETUP): setup.py requirements/constraints.txt
	@PYTHON="$(PYTHON)" scripts/preflight.sh python
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --no-build-isolation \
		--editable '.[test,lint,docs]'
	@touch $@

demo: $(SETUP) ## Start a stand-in for OpenAI and the proxy; print requests to paste; Ctrl-C ends both
	@$(BIN)/python scripts/demo.py

test: $(SETUP) $(TESTED) ## Run every test, the SDKs' and the packaging's included; BUILD=compiled: those of the compiled build
	@scripts/system-packages.sh $(TEST_PACKAGES)
	@scripts/preflight.sh node curl go systemd
	$(BIN)/python scripts/environments.py
	$(PYTEST) $(ARGS)
ifeq ($(BUILD),compiled)
	$(BIN)/python -m tests.differential . $(TREE)
endif

# The wheel is made anew when a source has changed, the tests' files are copied each time.
$(TREE): $(TREE)/flowstack
	cp -a tests bench scripts docs etc requirements Makefile *.py *.in *.ini *.rst *.toml .importlinter LICENSE $(TREE)
	ln -sfn $(CURDIR)/.envs $(TREE)/.envs

$(TREE)/flowstack: $(SETUP) setup.py $(shell find flowstack -name '*.py')
	rm -rf $(TREE) build/wheel
	FLOWSTACK_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target $(TREE) build/wheel/*.whl

check: JOBS = $(shell nproc)
check: lint ## Run lint and the quick tests, in about a minute: the inner loop
	$(PYTEST) -q -m "not long" $(ARGS)

lint: $(SETUP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(SETUP) ## Measure Flowstack beside nginx and Envoy (long)
	$(BIN)/python -m bench

bench-quick: $(SETUP) ## Measure Flowstack beside nginx, in under two minutes
	$(BIN)/python -m bench --quick

bench-reports: $(SETUP) ## Measure the ledger's reports over ten million rows (some minutes; ARGS="--rows 1000000")
	$(BIN)/python -m bench.reports $(ARGS)

bench-shared: $(SETUP) ## Measure what limits cost that are counted in a Redis, beside local ones (some minutes)
	$(BIN)/python -m bench.shared $(ARGS)

bench-scaling: $(SETUP) ## Measure what shared limits cost Redis, and simulate up to 64 machines while things fail (some minutes)
	@scripts/system-packages.sh redis-server=redis-server
	$(BIN)/python -m bench.redis_costs
	$(BIN)/python -m bench.simulation $(ARGS)

bench-shipping: $(SETUP) ## Measure what sending rows to PostgreSQL costs, and reports over a million there (some minutes)
	$(BIN)/python -m bench.shipping $(ARGS)

bench-waiting: $(SETUP) ## Measure the shipper's memory while 600 MB of rows wait (two minutes)
	$(BIN)/python -m bench.waiting $(ARGS)

instructions: $(SETUP) $(TESTED) ## Count the instructions of a request and a chunk; fail where one grew by over 3 % of what is kept for the build
	@scripts/system-packages.sh valgrind=valgrind
	$(RUN) -m bench.instructions $(ARGS)
ifeq ($(BUILD),compiled)
	cp $(TREE)/bench/results/instructions.json bench/results
endif

docs: $(SETUP) ## Build the manual into build/docs; its examples run in "make test"
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

diagrams: $(SETUP) ## Draw the manual's pictures from docs/diagrams/*.dot
	@scripts/system-packages.sh dot=graphviz
	$(BIN)/python scripts/diagrams.py

wheel: $(SETUP) ## Build the wheel into dist/ and, where a C compiler is, the compiled one
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	if command -v $${CC:-cc} > /dev/null; then FLOWSTACK_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps \
		--no-build-isolation --wheel-dir dist .; fi

constraints: $(SETUP) ## Write this environment's versions into requirements/constraints.txt
	$(BIN)/python scripts/constraints.py

screenshots: $(SETUP) ## Draw the manual's pictures of the page, by the browser suite's code
	@scripts/system-packages.sh chromium=chromium
	$(BIN)/python -m tests.e2e.pictures docs/pictures

settings: $(SETUP) ## Write etc/flowstack.toml from the table of settings
	$(BIN)/python -m scripts.settings

# In an environment of its own: the package is the script's tool, and Flowstack does not depend on it.
prices: ## Write the table of prices anew from PyPI's genai-prices, and prove that both say the same
	test -x .envs/prices/bin/python || $(PYTHON) -m venv .envs/prices
	.envs/prices/bin/python -m pip install --quiet --upgrade genai-prices attrs
	.envs/prices/bin/python scripts/prices.py

clean: ## Remove everything that the other targets made
	rm -rf build dist demo docs/reference/generated .venv .envs .cache .mypy_cache .ruff_cache .hypothesis _trial_temp *.egg-info
	rm -f twisted/plugins/dropin.cache twistd.pid twistd.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
