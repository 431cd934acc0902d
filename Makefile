# `make` lists what there is to do. PROFILE is paper, laptop, gpu or smoke (see settings.ini).

PROFILE ?= paper
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 to 3.13 makes the environment.
PYTHON ?= python3.11 python3 python3.13 python3.12
# The tests run in so many processes; ARGS="-n 0" for one.
WORKERS ?= 2
READY := $(VENV)/ready

.PHONY: help setup reproduce test lab export docs lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## Make .venv from requirements.lock: 3 GB, about a minute, once

reproduce: $(READY)  ## Run the paper's notebooks: make reproduce [PROFILE=paper|laptop|gpu|smoke] [TRAIN=1]
	$(BIN)/bloodcount reproduce --profile $(PROFILE) $(if $(TRAIN),--train)

test: $(READY)  ## Run the tests and the notebooks' lessons: make test [ALL=1, with the slow ones] [ARGS=for pytest]
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(if $(ALL),,-m "not slow") $(ARGS)

lab: $(READY)  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

export: $(READY)  ## Format and clean the notebooks, write bloodcount/ and the lists of notebooks from them
	$(BIN)/ruff format --quiet nbs tests
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python -c "from bloodcount.studies.page import write_lists; write_lists()"

docs: $(READY)  ## Build the site, docs/_build/html/index.html, from the notebooks and the docstrings
	$(BIN)/python docs/build.py

lock: | $(BIN)/uv  ## Write requirements.lock from pyproject.toml; UPGRADE=1 takes newer versions
	$(BIN)/uv pip compile pyproject.toml --extra dev --output-file requirements.lock \
	    --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	    --custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade)

clean:  ## Remove .venv and caches; data, runs and figures stay
	rm -rf $(VENV) $(VENV).making dist .pytest_cache .ruff_cache
	find bloodcount nbs tests -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(MAKE) --no-print-directory setup

# .venv is made anew, so that one whose making was interrupted heals; .venv.making names the process that makes it.
$(READY): requirements.lock pyproject.toml
	@set -e; \
	for python in $(PYTHON) none; do \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
	done; \
	if [ $$python = none ]; then \
	    echo "bloodcount needs Python 3.11, 3.12 or 3.13 with its venv module, and none of '$(PYTHON)' is" \
	        "one; install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; \
	fi; \
	if kill -0 "$$(readlink $(VENV).making)" 2>/dev/null; then \
	    echo "Another make is at $(VENV): wait until it is done." >&2; exit 1; \
	fi; \
	ln -sfn $$$$ $(VENV).making; trap 'rm -f $(VENV).making' EXIT; \
	echo "Making $(VENV) with $$($$python --version): 3 GB, about a minute, once."; \
	$$python -m venv --clear $(VENV); \
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >$(VENV)/uv.lock; \
	$(BIN)/python -m pip --disable-pip-version-check --quiet install --require-hashes -r $(VENV)/uv.lock; \
	index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null) && export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
	export VIRTUAL_ENV="$$PWD/$(VENV)"; \
	$(BIN)/uv pip sync --quiet --require-hashes --only-binary :all: requirements.lock; \
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .; \
	touch $(READY); echo "$(VENV) is ready."
