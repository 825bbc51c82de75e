# make demo   set up .venv and build recipes/riho_head.toml on the embedded base
# make test   set up .venv and run ruff, mypy and the tests
# make bench  set up .venv, measure for a quarter of an hour, and compare ratios with benchmarks/floors.toml

PYTHON ?= python3.11
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)

.PHONY: demo test bench clean

demo: .venv/installed
	$(BIN)/lorac build recipes/riho_head.toml

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/pytest --numprocesses auto --dist worksteal

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks

.venv/installed .venv/installed-dev .venv/installed-bench: pyproject.toml constraints.txt | .venv/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '$(WANTED)'
	touch $@

.venv/installed: WANTED := .
.venv/installed-dev: WANTED := .[dev]
.venv/installed-bench: WANTED := .[bench]

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build .lorac
