# make train, make test, make test-all, make lint: on a fresh machine with Python and make, nothing else is needed.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-all soak lint docs pictures clean

train: .venv/installed  ## Train and print a sample; overrides: make train ARGS="optim.lr=1e-2"
	@$(BIN)/python scripts/train.py $(ARGS)

test: .venv/installed-dev  ## Run the tests but for the long ones; some of them: make test ARGS="tests/test_data.py"
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

soak: .venv/installed-dev  ## Run what takes longer still: 500 runs killed at random moments, resumed and compared bit by bit
	@$(BIN)/python scripts/verify_resume.py --kills 500 --seed 1 data=bundled optim.grad_clip=0.5 optim.warmup_steps=10

test-all: .venv/installed-dev  ## Run every test, the long ones too
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/installed-dev  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: .venv/installed  ## Write docs/config.md and docs/pictures/floors.svg again, from the code
	@$(BIN)/python scripts/config_reference.py
	@$(BIN)/python -m bigramlm.dev.floors

pictures: .venv/installed-dev  ## Take the pictures in docs/pictures again; needs Chromium
	@$(BIN)/python scripts/pictures.py

clean:  ## Remove the environment and the caches; texts and runs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# The constraints are versions that were tested together; a change of either file installs again.
.venv/installed: pyproject.toml constraints.txt
	@echo "Installing into .venv; this takes some minutes the first time."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing what the tests need."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
