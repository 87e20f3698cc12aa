# The only commands to know. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo bench bench-codecs bench-memory bench-peers chaos test fuzz lint types fmt clean install containers

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fedbus needs Python 3.11 or later, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/fedbus demo

bench: $(STAMP)
	$(BIN)/python benchmarks/rounds.py --write
	$(BIN)/python benchmarks/worker.py --write

bench-codecs: $(STAMP)
	$(BIN)/python benchmarks/coding.py --write

bench-memory: $(STAMP)
	$(BIN)/python benchmarks/memory.py --write

# Makes environments for Flower and NVFlare in benchmarks/.envs; about 40 minutes.
bench-peers: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python -m peers --write

test: $(STAMP)
	$(BIN)/python -m pytest

# Kills and stops processes of a federation, again and again; the short form is part of `test`.
FAULTS ?= 200
chaos: $(STAMP)
	PYTHONPATH=$$PYTHONPATH:tests $(BIN)/python -m support.storm --faults $(FAULTS) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# 100,000 hostile chunks; the short form is part of `test`.
fuzz: $(STAMP)
	PYTHONPATH=$$PYTHONPATH:tests $(BIN)/python -W error tests/unit/codec/test_fuzz.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs docker compose or podman-compose; deploy/check.sh says how to build without a registry.
containers:
	deploy/check.sh

clean:
	rm -rf $(VENV) benchmarks/.envs .fedbus build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
