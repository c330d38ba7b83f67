# make demo   set up and make a short song           make test    set up and run the fast tests
# make check  format, lint, types and all tests      make clean   remove what make made
# make corpus HOURS=10   songs to train on; needs Debian's fluid-soundfont-gm (see docs/tiny-model.md)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOURS ?= 10

.PHONY: setup demo corpus test check format clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/yue demo

# tinysoundfont wants pyaudio, and that a compiler, only to play aloud; so it comes without its dependencies.
corpus: setup
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[corpus]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps 'tinysoundfont>=0.3.6'
	$(BIN)/python -m training.corpus --hours $(HOURS)

test: setup
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test
	$(BIN)/python -m pytest -n auto -m "slow and not gpu"

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
