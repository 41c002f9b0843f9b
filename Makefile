# The front door. `make` alone lists the verbs; each does the set-up it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-again test-fast test-policy test-routing lint docs fmt bench bench-start bench-certificates bench-compile bench-policies bench-testing lock clean

help: ## list these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s'|' 2>/dev/null || grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with all that work here needs

$(STAMP): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); \
	  else echo "Python's venv module is missing: sudo apt-get install python3-venv"; exit 1; fi; }
	@echo "installing into $(VENV) (about a minute the first time)"
	@$(BIN)/pip install -q --require-hashes -r requirements/dev.lock
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## a running mesh with Bookinfo on this machine (CHECK=1 proves it and ends)
	@$(BIN)/meltemi demo $(if $(CHECK),--check) $(if $(KEEP),--keep)

test: setup ## every test that belongs to a change, under ten minutes
	@$(BIN)/pytest -m "cluster and not slow" -o cache_dir=.pytest_cache/clusters > .cluster-tests.log 2>&1 & clusters=$$!; \
	  echo "tests of whole clusters run meanwhile; their output is in .cluster-tests.log, and follows here"; \
	  $(BIN)/pytest -m "not cluster and not slow" -n 3 --dist loadfile -o cache_dir=.pytest_cache/rest; rest=$$?; \
	  wait $$clusters; clusters=$$?; cat .cluster-tests.log; exit $$((rest | clusters))

test-again: setup ## what failed in the last "make test", with the machine to itself
	@for part in clusters rest; do \
	  $(BIN)/pytest -o cache_dir=.pytest_cache/$$part --last-failed --last-failed-no-failures none; \
	  code=$$?; test $$code = 0 -o $$code = 5 || exit $$code; \
	done

test-slow: setup ## what takes minutes: rotation and configuration churn under load, the plugin in a new environment
	@$(BIN)/pytest -m slow

test-policy: setup ## thousands of random policies and requests, Envoy against a model (some minutes)
	@POLICY_EXAMPLES=400 $(BIN)/pytest tests/policy/test_model.py --timeout 3600

test-routing: setup ## thousands of random rules and objects on real Envoys, against a model (some minutes)
	@ROUTING_EXAMPLES=1000 $(BIN)/pytest tests/behaviour/test_properties_routing.py tests/behaviour/test_properties_accepted.py --timeout 36000

test-fast: setup ## the pure tests only, seconds
	@$(BIN)/pytest -m "not envoy and not cluster and not slow"

lint: setup ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

docs: setup ## write docs/compatibility.md anew from the code and the tests' marks
	@$(BIN)/pytest -q tests/compatibility/test_document.py --update-golden

fmt: setup ## format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: bench-start bench-certificates bench-compile bench-policies bench-testing ## all benchmarks

bench-start: setup ## start-up times, memory and idle CPU of the demo; recorded in benchmarks/
	@$(BIN)/python -m benchmarks.start

bench-certificates: setup ## certificates per second, and 1,000 proxies that renew at once
	@$(BIN)/python -m benchmarks.certificates

bench-compile: setup ## meltemi compile for one proxy of a thousand-service mesh; recorded in benchmarks/
	@$(BIN)/python -m benchmarks.compile

bench-testing: setup ## the pytest plugin: its first test, and ten services with 50 tests; recorded
	@$(BIN)/python -m benchmarks.testing

bench-policies: setup ## what 100 authorization policies cost a request, as a ratio to none
	@$(BIN)/python -m benchmarks.policies

lock: setup ## resolve requirements/*.lock anew
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/runtime.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --extra kubectl --group dev requirements/build.in -o requirements/dev.lock

clean: ## remove what the verbs above made in this folder
	rm -rf $(VENV) .cluster-tests.log .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
