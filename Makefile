# make test    all checks: lint, types, unit, simulation and integration tests
# make demo    three Kamailios on this machine; Ctrl-C ends it (DEMO_SECONDS=20: ends by itself)
# make bench   measurements
# Each one first installs what it needs (tools/setup.sh).

PYTHON = .venv/bin/python
TESTS = tests/unit tests/simulation tests/integration
# Seconds that one test may take.
TIMEOUT = 120

.PHONY: test demo bench lint setup clean

test: lint
	@$(PYTHON) -m pytest $(TESTS) --timeout $(TIMEOUT)

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

demo: setup
	@$(PYTHON) -m demo

bench: setup
	@$(PYTHON) -m benchmarks

setup:
	@tools/setup.sh

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
