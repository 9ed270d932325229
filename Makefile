# make train, make test, make test-all and make lint require only Python and make; the first call installs the rest.

PYTHON ?= python3
# PyTorch's build: on auto, the CPU build on Linux without an NVIDIA driver; or cpu, cuda, default: make train TORCH=cuda
TORCH := auto
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.PHONY: train install install-dev test test-all soak lint docs notebook pictures clean

train: install  ## Train and print a sample; overrides: make train ARGS="optim.lr=1e-2"
	@$(BIN)/python scripts/train.py $(ARGS)

test: install-dev  ## Run the tests except the slow ones; a selection: make test ARGS="tests/data/test_data.py"
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

soak: install-dev  ## Kill 500 runs, simulate 200 power cuts, try 500 hostile folders; slower than test-all
	@HOSTILE_FOLDERS=500 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_hostile.py
	@POWER_STATES=50 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_power.py
	@$(BIN)/python scripts/verify_resume.py --kills 500 --seed 1 data=bundled optim.grad_clip=0.5 optim.warmup_steps=10

test-all: install-dev  ## Run all tests, including the slow ones
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: install-dev  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: install  ## Generate docs/config.md, docs/pictures/floors.svg and the table of GPUs
	@$(BIN)/python scripts/config_reference.py
	@$(BIN)/python -m bigramlm.dev.layers
	@$(BIN)/python -m bigramlm.dev.gpu_table

notebook: install-dev  ## Execute examples/ladder.ipynb and save its outputs
	@$(BIN)/python -m bigramlm.dev.notebook

pictures: install-dev  ## Retake the screenshots in docs/pictures; requires Chromium
	@$(BIN)/python scripts/pictures.py

clean:  ## Remove the environment and the caches, but keep texts and runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# Does nothing if the environment is complete. constraints.txt pins versions that were tested together; a change of it or
# of pyproject.toml leads to a new installation.
install install-dev:  ## Create .venv and install into it; install-dev: also what tests and linters need
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON): not found; install Python 3.10 or newer (on Debian and \
	Ubuntu: sudo apt install python3-venv), or name yours: make PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" scripts/install.py $(if $(filter %-dev,$@),--dev) --torch "$(TORCH)" --cpu-index "$(CPU_INDEX)"
