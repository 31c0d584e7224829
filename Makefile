# Everything here works on a fresh machine that has Python 3.11 or newer and make.
# The first target that needs it builds .venv from requirements.lock; after that nothing touches the network.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Those that measure. The others run tests or comparisons for minutes: differential, fuzz, defences.
BENCHMARKS := evaluation local_api agent_start flat client storm wire cuts delta abuse soak
# What `make test` and `make test-pythons` run; TESTS names files or folders, and none means all.
SUITE := -n 4 --dist worksteal -m "not (rabbitmq or aedes or ejabberd or variant)"
TESTS ?=
SOURCES := shared/src broker_bridge/src device_agent/src tests benchmarks tools

.DEFAULT_GOAL := help
.PHONY: help install demo test test-pythons test-brokers test-providers lint bench fuzz lock proto format clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

# uv comes first, by its hash; it then installs everything else by hash.
$(READY): requirements.lock requirements-oracles.lock requirements-uv.lock shared/pyproject.toml broker_bridge/pyproject.toml device_agent/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Flagcast needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e shared -e broker_bridge -e device_agent
	$(BIN)/uv venv --quiet --python $(BIN)/python $(VENV)/oracles
	$(BIN)/uv pip install --quiet --python $(VENV)/oracles/bin/python --require-hashes --no-deps -r requirements-oracles.lock
	@touch $@

install: $(READY) ## Build the virtual environment .venv

demo: $(READY) ## Run the main job for real: publish, receive, verify, persist, answer
	$(BIN)/flagcast demo --flags examples

test: $(READY) ## Run all tests (installs mosquitto and PostgreSQL when it may) but those on other brokers
	@tools/need-mosquitto.sh
	@tools/need-postgres.sh
	@tools/need-node-modules.sh
	@tools/need-go-application.sh
	@tools/need-java-application.sh
	@tools/need-h2spec.sh
	$(BIN)/python -m pytest $(SUITE) $(TESTS)

test-pythons: ## Run all tests, or those that TESTS names, on every Python from 3.11 on that is found
	@tools/need-mosquitto.sh
	@tools/need-postgres.sh
	@tools/test-pythons.sh $(SUITE) $(TESTS)

test-brokers: $(READY) ## Run every scenario on every broker (installs them when it may) and print the table
	@tools/need-mosquitto.sh
	@tools/need-brokers.sh
	$(BIN)/python -m pytest -n 3 --dist loadscope tests/matrix

test-providers: $(READY) ## Run the tests with providers and clients of others alone
	@tools/need-node-modules.sh
	@tools/need-go-application.sh --required
	@tools/need-java-application.sh --required
	@tools/need-rust-application.sh --required
	$(BIN)/python -m pytest -n 2 tests/providers

lint: $(READY) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## Run every benchmark and print its table
	@for name in $(BENCHMARKS); do echo; $(BIN)/python benchmarks/$$name.py || exit 1; done

fuzz: $(READY) ## Fuzz every function that takes bytes or text of others
	$(BIN)/python benchmarks/fuzz.py

format: $(READY) ## Format the sources
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lock: ## Resolve all versions anew into requirements.lock
	$(PYTHON) tools/lock.py

proto: $(READY) ## Generate the protobuf modules from their .proto files
	$(BIN)/python tools/proto.py

clean: ## Remove the virtual environments and caches
	rm -rf $(VENV) .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
