# make run      builds .venv, meta-trains the 10-shot sinusoid, and tests it
# make test     runs the tests
# make quick    what to run after every edit, in less than 90 seconds
# make check    formatter, linter and types
# make audit    looks the pinned packages up among the known vulnerabilities (needs the network)
# make figures  draws docs/figures/ from the runs under logs/, training those that are missing
# make compare  trains and tests MAML and other algorithms, BUDGET seconds each, and writes docs/compare.md
# make demo     shows a page to draw on, in the browser
# make docs     builds the site of the guides and the public names: docs/_build/html/docs/index.html
# make bench    measures a meta-update beside the official structure and beside its bare arithmetic
PYTHON ?= python3
ITERATIONS ?= 70000
BIN := .venv/bin
SINUSOID := --datasource=sinusoid --norm=None --update_batch_size=10
LOGDIR ?= logs/sinusoid
BUDGET ?= 120

.PHONY: run demo docs test quick check audit bench compare figures format clean

run: .venv/installed
	$(BIN)/python main.py $(SINUSOID) --metatrain_iterations=$(ITERATIONS) --logdir=$(LOGDIR)
	$(BIN)/python main.py --train=False --test_set=True --logdir=$(LOGDIR)

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

quick: .venv/installed
	$(BIN)/python -m pytest -m "not slow" --numprocesses=auto --maxprocesses=4 tests/config tests/core tests/kernels tests/models tests/algorithms/test_protonet.py tests/algorithms/test_matching.py

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy main.py proc_images.py maml benchmarks

# --strict: a package that could not be looked up is no good news.
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock
	rm -rf .audit

demo: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-demo.txt
	$(BIN)/python main.py --demo

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx --fail-on-warning --quiet --builder html -c docs . docs/_build/html

bench: .venv/installed
	$(BIN)/python -m benchmarks.speed

compare: .venv/installed
	$(BIN)/python -m benchmarks.compare --seconds=$(BUDGET)

figures: .venv/installed
	$(BIN)/python -m benchmarks.figures

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON): Python 3.10 to 3.13 is needed, for which there is a TensorFlow; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

clean:
	rm -rf .venv .audit .pytest_cache .mypy_cache .ruff_cache
