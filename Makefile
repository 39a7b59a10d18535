# Every target works from a fresh clone with Python 3.11, 3.12 or 3.13 and make: the first one run sets up .venv.
PYTHON ?= python3
ARGS   ?=

BIN   := .venv/bin
READY := .venv/.ready
# The four folders, linked to where their imports find them (vitskip.envs is envs/), so that editors, pyright and
# import-linter see one package. Running and installing the package needs no links.
LINKS := $(addprefix vitskip/,backbone envs agents eval)

# Empty, so that compiled modules are kept: without them each command compiles its imports anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo pretrain bench bench-learning test test-slow check format lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-10s  %s\n", $$1, $$2 }'

setup: $(READY) $(LINKS) ## make .venv as locked, hashes verified, with this folder installed editable

demo: setup ## train and measure a small dynamic ViT from nothing (ARGS="..." for more options)
	$(BIN)/vitskip demo --out runs/demo $(ARGS)

pretrain: setup ## train the backbone to tolerate skipping (ARGS="...")
	$(BIN)/vitskip pretrain $(ARGS)

bench: setup ## measure the environment's steps per second (ARGS="...")
	$(BIN)/python -m vitskip.eval.env_speed $(ARGS)

bench-learning: setup ## measure how fast agents learn (ARGS="...")
	$(BIN)/python -m vitskip.eval.learning_speed $(ARGS)

test: setup ## run the fast tests (ARGS="-x tests/test_macs.py")
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: setup ## run the tests that train for minutes
	$(BIN)/pytest -m slow $(ARGS)

check: setup ## check format, lint, types and layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

lock: setup ## resolve requirements.lock anew from pyproject.toml (ARGS="--upgrade")
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url -o requirements.lock $(ARGS)

clean: ## remove .venv and everything built; keeps runs/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	rm -f $(LINKS)

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % v)'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(LINKS):
	ln -s ../$(@F) $@
