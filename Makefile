# `make` lists what there is to do. PROFILE is paper, laptop or smoke (see settings.ini).

PROFILE ?= paper
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 to 3.13 makes the environment.
PYTHON ?= python3.11 python3 python3.13 python3.12
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# While .venv is being made, it holds the file `unfinished` with the number of the process that makes it.
READY := $(VENV)/ready
UNFINISHED := $(VENV)/unfinished

.PHONY: help setup reproduce test lab export lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## Make .venv from requirements.lock: 3 GB, about two minutes, once

reproduce: $(READY)  ## Run the paper's notebooks: make reproduce [PROFILE=paper|laptop|smoke]
	$(BIN)/bloodcount reproduce --profile $(PROFILE)

test: $(READY)  ## Run all tests, the notebooks' lessons among them; ARGS goes to pytest
	$(BIN)/pytest $(ARGS)

lab: $(READY)  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

export: $(READY)  ## Format and clean the notebooks, and write bloodcount/ from them
	$(BIN)/ruff format --quiet nbs tests
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

lock: | $(BIN)/uv  ## Write requirements.lock from pyproject.toml; UPGRADE=1 takes newer versions
	$(BIN)/uv pip compile pyproject.toml --extra dev --output-file requirements.lock \
	    --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	    --custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade)

clean:  ## Remove .venv and caches; data, runs and figures stay
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
	find bloodcount nbs tests -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(MAKE) --no-print-directory setup

# An interrupted installation can look whole to pip, so it starts again from an empty folder.
$(READY): requirements.lock pyproject.toml
	@set -e; \
	if [ -e $(UNFINISHED) ]; then \
	    if kill -0 "$$(cat $(UNFINISHED))" 2>/dev/null; then \
	        echo "Another make is at $(VENV): wait until it is done; if there is none, make clean." >&2; \
	        exit 1; \
	    fi; \
	    echo "The last setup of $(VENV) was interrupted; starting again."; \
	    find $(VENV) -mindepth 1 -maxdepth 1 ! -name unfinished -exec rm -rf {} +; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	    for python in $(PYTHON) none; do \
	        $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	            2>/dev/null && break; \
	    done; \
	    if [ $$python = none ]; then \
	        echo "bloodcount needs Python 3.11, 3.12 or 3.13 with its venv module, and none of" \
	            "'$(PYTHON)' is one; install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	        exit 1; \
	    fi; \
	    mkdir -p $(VENV); echo $$$$ >$(UNFINISHED); \
	    echo "Making $(VENV) with $$($$python --version): 3 GB, about two minutes, once."; \
	    $$python -m venv $(VENV); \
	fi; \
	echo $$$$ >$(UNFINISHED); \
	{ $(PIP) install --require-hashes --only-binary :all: --progress-bar off -r requirements.lock \
	    && $(PIP) install --no-deps --no-build-isolation --editable . && echo @done; } 2>&1 \
	| tee $(VENV)/setup.log | { \
	    fetched=0; status=1; \
	    while read -r word rest; do \
	        case $$word in \
	            Collecting|Processing) \
	                fetched=$$((fetched + 1)); \
	                if [ $$((fetched % 25)) = 0 ]; then echo "  $$fetched packages fetched"; fi;; \
	            Installing) \
	                if [ $$fetched -gt 25 ]; then echo "  installing them, about a minute"; fi; \
	                fetched=0;; \
	            @done) status=0;; \
	        esac; \
	    done; \
	    exit $$status; \
	} || { \
	    tail -n 12 $(VENV)/setup.log >&2; \
	    echo "Setting up $(VENV) failed: see above and $(VENV)/setup.log. make tries again." >&2; exit 1; \
	}; \
	mv -f $(UNFINISHED) $(READY); \
	echo "$(VENV) is ready."
