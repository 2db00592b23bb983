# `make demo` and `make test` are all a newcomer needs; both set up .venv by themselves.
BIN := .venv/bin
COMPILED := build/compiled
# Hundreds of processes start in a test run; where this is set each would compile all that it imports.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := gateway orchestrator tests examples scripts bench

.PHONY: demo test prepare fast beside alone chaos check unit setup lock openapi dashboards configuration recordings docs format vendor screenshots compiled bench bench-peers bench-prefix soak fuzz clean

setup: .venv/.done

.venv/.done: pyproject.toml uv.lock scripts/setup
	scripts/setup

# ONCE=1 ends after the first answer.
demo: setup
	@$(BIN)/sluice demo $(if $(ONCE),--once)

# Everything: the cluster and vLLM as well where they can run, and must under CI=true.
# --keep-going tells of every part what fails in it.
test: check prepare fast beside alone

.NOTPARALLEL:

prepare: setup
	tests/prepare

fast: setup
	$(BIN)/pytest -q -n auto -m "not system and not cluster and not vllm and not chaos"

# With real programs, but no need of the machine's whole attention.
beside: setup
	$(BIN)/pytest -q -n auto --dist worksteal -m beside

alone: setup
	$(BIN)/pytest -m "(system or cluster or vllm or chaos) and not beside"

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The fast tests alone, on all processors.
unit: check fast

# Each fault done for real, and a table of what became of it; at most 15 minutes on two processors. CHAOS_SEED repeats
# a run's random points; CHAOS_OUTAGE_SECONDS (120; half when killed) and CHAOS_LINK_SECONDS (60): slurmctld and the laptop's
# link are away.
chaos: setup
	tests/prepare
	timeout --foreground 15m $(BIN)/pytest -m chaos tests/chaos tests/e2e/test_walltime.py

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

openapi: setup
	$(BIN)/python scripts/openapi.py

# Grafana's dashboards, from what stands in scripts/dashboards.py.
dashboards: setup
	$(BIN)/python -m scripts.dashboards

# docs/configuration.md from what stands below the fields of both settings.py.
configuration: setup
	$(BIN)/python -m scripts.configuration

# What a terminal shows, into docs/recordings and the pages that have it; on the cluster of the tests, so as root.
recordings: setup
	$(BIN)/python -m scripts.recordings

# The pages as a site in build/site, which needs nothing from outside: `python3 -m http.server -d build/site`.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The data path, compiled, beside other proxies; the table goes into docs/performance.md. QUICK=1: a few minutes, no table.
# ONLY=words: some of it, e.g. ONLY="orchestrator,nginx + ssh". REPETITIONS=5.
bench: compiled
	cd $(COMPILED) && $(CURDIR)/$(BIN)/python -m bench --into $(CURDIR) $(if $(QUICK),--quick) \
		$(if $(ONLY),--only "$(ONLY)",$(if $(QUICK),,--write)) $(if $(REPETITIONS),--repetitions $(REPETITIONS))

# A copy of the project with its data path as machine code; as a wheel: SLUICE_COMPILED=1 .venv/bin/uv build --wheel
compiled: setup
	$(BIN)/python scripts/compiled.py $(COMPILED)

# The proxies of others that pip has, in environments of their own under ~/.cache.
bench-peers: setup
	$(BIN)/python -m bench.peers

# What routing by prefix gains, on two real vLLMs; its table goes into docs/performance.md.
bench-prefix: setup
	$(BIN)/python -m bench.prefix

# Load of every kind through the whole chain for SOAK_SECONDS (1800), with clients that leave and engines that die.
soak: setup
	$(BIN)/python -m bench.soak $(SOAK_SECONDS)

# Each parser for SECONDS (60) of inputs that no program should send; what is found is kept in tests/fuzz/crashers.
# ONLY=words: some of them, e.g. ONLY="mux events".
fuzz: setup
	SECONDS=$(or $(SECONDS),60) $(BIN)/python -m tests.fuzz $(ONLY)

# The JavaScript of others that pages load: fetched from npm again, and checked.
vendor: setup
	$(BIN)/python scripts/vendor.py

# The pictures of docs/dashboard.md, by Chromium.
screenshots: setup
	SLUICE_SCREENSHOTS=1 $(BIN)/pytest -q tests/browser/test_screenshots.py

# After a change of dependencies: uv.lock for uv, requirements.txt for pip.
lock:
	$(BIN)/uv lock
	$(BIN)/uv export --quiet --locked --no-default-groups --no-emit-project --extra embedded --no-annotate --no-header -o requirements.txt

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
