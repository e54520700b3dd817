# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test lint bench docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/quintet demo

lint: setup
	$(BIN)/ruff check src tests benchmarks docs/hooks.py
	$(BIN)/ruff format --check src tests benchmarks docs/hooks.py
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

RACES := diffusion autoregressive flows vae gan metrics
RACE_OPTIONS ?= --rounds 3

bench: setup
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/start_up.py
	for race in $(RACES); do $(BIN)/python benchmarks/$$race.py $(RACE_OPTIONS) || exit 1; done

docs: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --quiet --strict
	$(BIN)/mkdocs build --quiet --strict -f mkdocs.zh.yml

clean:
	rm -rf $(VENV) site dist build
