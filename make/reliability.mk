# Fuzzing, mutants, coverage, soaking and versions: too slow for every change.
FUZZ_SECONDS ?= 120
# The lowest that pyproject.toml allows, some between, and the newest but one; the newest is what everything runs on.
MATRIX ?= 5.0.0 5.2.0 5.12.1 5.23.0
# What a version of transformers reaches; the rest of the suite never calls it.
MATRIX_TESTS ?= $(addprefix tests/,instrument/test_attention.py instrument/test_families.py influence/test_influence.py influence/test_direct.py instrument/test_cache.py influence/test_core_details.py instrument/test_guards.py measurement/test_measurement.py models/test_models.py compression/test_compression.py compression/test_compression_generate.py models/test_real_model.py)
MUTANTS ?= 240
SEED ?= 7
COVERAGE := $(BIN)/python -m coverage
ONE := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: fuzz coverage test-matrix test-pythons mutants soak
fuzz: $(VENV)/.test-installed ## throw mutated input at the parsers for FUZZ_SECONDS
	test -d .matrix/fuzz || $(PIP) --target .matrix/fuzz --no-deps atheris==3.0.0 || true
	PYTHONPATH=.matrix/fuzz $(ONE) $(BIN)/python benchmarks/fuzz.py $(FUZZ_SECONDS)

coverage: $(VENV)/.extras-installed ## branch coverage of the engine over the fast suite
	$(ONE) $(COVERAGE) run -m pytest -m "not slow and not browser"
	$(COVERAGE) report

mutants: $(VENV)/.test-installed ## seeded mutants of the engine's core, each against a suite of seconds
	test -d .matrix/mutants || $(PIP) --target .matrix/mutants cosmic-ray==8.7.0
	PYTHONPATH=.matrix/mutants $(ONE) $(BIN)/python benchmarks/mutants.py $(MUTANTS) $(SEED)

soak: $(VENV)/.test-installed ## five hundred short documents: memory, open files and speed stay flat
	$(ONE) $(BIN)/python benchmarks/soak.py

test-matrix: $(addprefix .matrix/,$(addsuffix /.installed,$(MATRIX))) ## what transformers reaches, on each of MATRIX
	for version in $(MATRIX); do \
		echo "transformers $$version"; \
		PYTHONPATH=.matrix/$$version $(ONE) $(BIN)/python -m pytest -m "not slow" $(MATRIX_TESTS) || exit 1; \
	done

# Beside the environment that is there, which has the one torch; tokenizers and the hub client go with the version.
.matrix/%/.installed: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --target .matrix/$* --upgrade "transformers==$*"
	touch $@

# Other Pythons, where they lie at hand: what is written here must compile there; torch for each would be gigabytes.
PYTHONS ?= $(wildcard $(HOME)/.pyenv/versions/3.1[2-9].*/bin/python)
test-pythons: ## compile everything with every other Python at hand
	for python in $(PYTHONS); do $$python -V && $$python -W error -m compileall -q -f forward_influence cli analysis data || exit 1; done
