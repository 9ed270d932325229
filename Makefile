# make train, make test, make test-all and make lint require only Python and make; the first call installs the rest.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-all soak lint docs notebook pictures clean

train: .venv/installed  ## Train and print a sample; overrides: make train ARGS="optim.lr=1e-2"
	@$(BIN)/python scripts/train.py $(ARGS)

test: .venv/installed-dev  ## Run the tests except the slow ones; a selection: make test ARGS="tests/data/test_data.py"
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

soak: .venv/installed-dev  ## Kill 500 runs, simulate 200 power cuts, try 500 hostile folders; slower than test-all
	@HOSTILE_FOLDERS=500 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_hostile.py
	@POWER_STATES=50 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_power.py
	@$(BIN)/python scripts/verify_resume.py --kills 500 --seed 1 data=bundled optim.grad_clip=0.5 optim.warmup_steps=10

test-all: .venv/installed-dev  ## Run all tests, including the slow ones
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/installed-dev  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: .venv/installed  ## Generate docs/config.md, docs/pictures/floors.svg and the table of GPUs
	@$(BIN)/python scripts/config_reference.py
	@$(BIN)/python -m bigramlm.dev.layers
	@$(BIN)/python -m bigramlm.dev.gpu_table

notebook: .venv/installed-dev  ## Execute examples/ladder.ipynb and save its outputs
	@$(BIN)/python -m bigramlm.dev.notebook

pictures: .venv/installed-dev  ## Retake the screenshots in docs/pictures; requires Chromium
	@$(BIN)/python scripts/pictures.py

clean:  ## Remove the environment and the caches, but keep texts and runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# constraints.txt pins versions that were tested together; a change of either file triggers a new installation.
.venv/installed: pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time takes a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing the test dependencies."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
