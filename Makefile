# claude-vm: `make run` sets up what is missing and runs a session; `make test` runs all tests.

VENV   ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 /usr/bin/python3 python3; do \
            command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
BIN     = $(VENV)/bin
# What `make run` does without ARGS: proves that Claude Code runs in a VM, and that it sees this project.
DEMO    = 'uname -srm; claude --version; pwd; ls -A'

.PHONY: help run test test-lima test-lima-import check format bench soak chaos system system-test venv dev clean

help:
	@echo "make run [ARGS='…']  set up what is missing, then run claude-vm in this folder"
	@echo "make test            all tests, real VMs included"
	@echo "make test-lima       the tests of Lima: with a stand-in for limactl, and with limactl where it is"
	@echo "make check           format, lint, types, import rules"
	@echo "make bench [ARGS='…']  what a user waits for against its targets, in this folder (it must have a template)"
	@echo "make soak            repeat the session tests for a long time"
	@echo "make chaos           kill everything at random, CHAOS_KILLS times, and print what is left (an hour)"

run: system venv
ifdef ARGS
	@$(BIN)/claude-vm $(ARGS)
else
	@$(BIN)/claude-vm --auto-setup shell $(DEMO)
endif

# In lanes, see tests/lanes.py. Some tests only: .venv/bin/python -m pytest PATH.
test: system system-test dev
	@$(BIN)/python tests/lanes.py $(PYTEST_ARGS)

# Twice where the real one is on the PATH: the summaries say which limactl it was. The second command runs the
# end-to-end suite, that of the driver qemu, with the driver lima.
LIMA_TESTS ?= -k lima
LIMA_E2E ?= tests/e2e
test-lima: system system-test dev
	@$(BIN)/python tests/standins/choice.py $(BIN)/python -m pytest $(LIMA_TESTS) $(PYTEST_ARGS)
	@PYTHONPATH=tests $(BIN)/python -m standins.tested
	@$(BIN)/python tests/standins/choice.py $(BIN)/python -m pytest $(LIMA_E2E) --driver lima $(PYTEST_ARGS)

# Installs a system's packages inside a guest: ten minutes under software emulation.
test-lima-import: system system-test dev
	@$(BIN)/python tests/standins/choice.py $(BIN)/python -m pytest tests/lima/imported_image.py $(PYTEST_ARGS)

check: dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .dev/claude_vm hatch_build.py
	@$(BIN)/lint-imports

format: dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/python tests/grammar/settings_document.py docs/configuration.md

bench: system venv
	@$(BIN)/claude-vm bench targets $(ARGS)

# Twenty rounds of the tests that start and end real sessions, in their long forms.
soak: system system-test dev
	@for i in $$(seq 20); do echo "round $$i"; CHAOS_KILLS=$(CHAOS_KILLS) $(BIN)/python -m pytest -q tests/e2e $(PYTEST_ARGS) || exit 1; done

# The long forms of the fault tests, then real kills and claims. CHAOS_SEED repeats the choices of a run.
CHAOS_KILLS  ?= 200
CHAOS_CLAIMS ?= 200
export CHAOS_SEED
chaos: system system-test dev
	@CHAOS_KILLS=$(CHAOS_KILLS) $(BIN)/python -m pytest -q -s tests/chaos tests/e2e/test_faults.py \
	    tests/core/test_many.py::test_of_very_many_claims_none_is_double tests/core/test_stateful.py $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -q tests/contract/unseeded_guests.py
	@CHAOS_KILLS=$(CHAOS_KILLS) CHAOS_CLAIMS=$(CHAOS_CLAIMS) $(BIN)/python tests/chaos/campaign.py

system:
	@sh .ci/system-packages run

system-test:
	@sh .ci/system-packages test

venv: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@echo "creating the environment $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml hatch_build.py supervisor/cli/launcher/claude-vm
	@echo "installing claude-vm and its libraries into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	@rm -rf $(VENV) .dev .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
