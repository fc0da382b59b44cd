# make test    all checks: lint, types, unit, simulation and integration tests
# make demo    three Kamailios on this machine; Ctrl-C ends it (DEMO_SECONDS=20: ends by itself)
# make bench   measurements
# make up      three Python nodes and a C node in containers; make down ends them
# Each one first installs what it needs (tools/setup.sh).

PYTHON = .venv/bin/python
# Seconds that one test may take.
TIMEOUT = 120
DOCKER_TIMEOUT = 300
MEASURED = .measured
SUITE ?= bookworm
COMPOSE = SUITE=$(SUITE) docker-compose -p kemi_dmq -f docker/compose.yaml

.PHONY: test demo bench lint setup clean up down

test: lint
	@$(PYTHON) -m pytest tests/unit tests/simulation --timeout $(TIMEOUT)
	@$(PYTHON) -m pytest tests/integration -n 2 --timeout $(TIMEOUT)
	@rm -f $(MEASURED)
	@KEMI_DMQ_MEASURED=$(MEASURED) $(PYTHON) -m pytest tests/docker -n 3 --timeout $(DOCKER_TIMEOUT) -o timeout_func_only=true
	@if [ -s $(MEASURED) ]; then $(PYTHON) -m tests.docker.table $(MEASURED) docs/versions.md; fi

up: setup
	@docker/build.sh $(SUITE)
	@$(COMPOSE) up -d
	@echo "kamcmd in the C node: $(COMPOSE) exec c kamcmd -s unix:/run/node/ctl dmq.list_nodes"

down:
	@$(COMPOSE) down

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

demo: setup
	@$(PYTHON) -m demo

bench: setup
	@$(PYTHON) -m benchmarks --write docs/performance.md

setup:
	@tools/setup.sh

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
