# make test    all checks: lint, types, unit, simulation and integration tests
# make demo    three Kamailios on this machine; Ctrl-C ends it (DEMO_SECONDS=20: ends by itself)
# make bench   measurements; WRITE=docs/performance.md writes them there as well, with their plots;
#              SECTIONS="send receive": these alone; QUICK=1: only shows that they work
# make golden  the transcripts in tests/simulation/golden and the state diagram in docs/membership.md
#              anew, after a change of the protocol
# make up      three Python nodes (NODES=6: so many) and a C node in containers; make down ends them
# Each one first installs what it needs (tools/setup.sh).

PYTHON = .venv/bin/python
# Seconds that one test may take.
TIMEOUT = 120
DOCKER_TIMEOUT = 300
MEASURED = .measured
SUITES = bookworm trixie forky
SUITE ?= bookworm
NODES ?= 3
# BUILD=: leaves the images as they are.
BUILD = docker/build.sh
PROJECT ?= kemi_dmq
# The plugin, or the program of its own that was before it.
COMPOSE = SUITE=$(SUITE) $$(docker compose version >/dev/null 2>&1 && echo docker compose || \
	echo docker-compose) -p $(PROJECT) -f docker/compose.yaml

.PHONY: test demo bench golden lint setup containers clean up down

test: lint containers
	@$(PYTHON) -m pytest tests/unit tests/simulation -n 2 --timeout $(TIMEOUT)
	@$(PYTHON) -m pytest tests/integration -n 2 --timeout $(TIMEOUT)
	@if docker info >/dev/null 2>&1; then \
		for suite in $(SUITES); do $(BUILD) $$suite || exit 1; done; fi
	@rm -f $(MEASURED)
	@KEMI_DMQ_MEASURED=$(MEASURED) $(PYTHON) -m pytest tests/docker -n 2 --timeout $(DOCKER_TIMEOUT) -o timeout_func_only=true
	@if [ -s $(MEASURED) ]; then $(PYTHON) -m tests.docker.table $(MEASURED) docs/versions.md; fi

up: containers
	@docker info >/dev/null 2>&1 || { echo "make up needs a Docker Engine: docker info fails"; exit 1; }
	@$(BUILD) $(SUITE)
	@$(COMPOSE) up -d --scale node=$(NODES)
	@docker/wait.sh $(PROJECT)
	@echo "the bus as the C node sees it:"
	@echo "  docker exec $$($(COMPOSE) ps -q c | cut -c 1-12) kamcmd dmq.list_nodes"
	@echo "as a Python node sees it:"
	@echo "  docker exec $$($(COMPOSE) ps -q node | head -n 1 | cut -c 1-12) python3 /opt/node/health.py --show"

down:
	@$(COMPOSE) down

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

demo: setup
	@$(PYTHON) -m demo

bench:
	@tools/setup.sh --brokers
	@$(PYTHON) -m benchmarks $(SECTIONS) $(if $(WRITE),--write $(WRITE)) $(if $(QUICK),--quick)

golden: setup
	@KEMI_DMQ_GOLDEN=write $(PYTHON) -m pytest tests/simulation/test_golden.py -q
	@$(PYTHON) -m tools.membership_page

setup:
	@tools/setup.sh

containers: setup
	@tools/setup.sh --containers

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
