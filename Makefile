# make train [ARGS="d=8 ..."]   creates .venv, installs, trains
# make test                     creates .venv, installs, runs lint, types and all tests
PYTHON ?= python3
BIN := .venv/bin
SIDE_BY_SIDE := -n auto --dist loadgroup

.PHONY: train test lint types clean

train: .venv/.installed
	$(BIN)/python scripts/train.py $(ARGS)

test: lint types
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not cluster and not minutes"
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow and not cluster"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vae_lab needs Python 3.11 or newer; give one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# uv, where there is one, takes seconds; it is told where pip would look
ifneq (,$(shell command -v uv))
INSTALL = UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" uv pip install -q --python $(BIN)/python -c constraints.txt
else
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
endif

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	@echo "installing into .venv: a minute or two, and more where torch has to be downloaded"
	$(INSTALL) -e .
	@touch $@

.venv/.installed-dev: .venv/.created pyproject.toml constraints.txt
	@echo "installing into .venv: a minute or two, and more where torch has to be downloaded"
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/.installed
