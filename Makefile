# The entry points. Everything else is CMake: see CMakePresets.json.
PROMPT ?= The program reads a file and
SECONDS ?= 300
MAKEFLAGS += --no-print-directory

.PHONY: run build test sanitize fuzz bench gpu gpu-sanitize format lint setup clean

run: build  ## Build, then let the embedded model write.
	./build/release/foresight run -p "$(PROMPT)" --max-tokens 200

setup:
	@scripts/setup.sh build

build: setup  ## build/release/foresight
	@cmake --preset release -Wno-dev
	@cmake --build --preset release

test: setup  ## Builds the release preset and runs every test.
	@scripts/test.sh release

sanitize: setup  ## The same under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer.
	@scripts/test.sh asan tsan

fuzz:  ## Feeds every parser damaged input under sanitizers, SECONDS each (default 300).
	@scripts/setup.sh build fuzz
	@tests/fuzz/run.sh $(SECONDS)

bench: build  ## What this machine reaches: the embedded model, then the released layer shapes.
	./build/release/foresight bench --json build/bench-embedded.json
	./build/release/foresight bench --synthetic flash:6 --experts 24 --json build/bench-flash.json

gpu: build  ## On a machine with an NVIDIA GPU and nvcc: its tests and benchmarks, with a report in bench/results.
	python3 bench/gpu_report.py

gpu-sanitize: build  ## The tests of CUDA kernels under compute-sanitizer's tools, with a report beside the other; takes minutes.
	python3 bench/gpu_sanitize.py

format:
	@scripts/setup.sh lint
	git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

lint: build  ## The formatter's opinion and clang-tidy's, on everything.
	@scripts/setup.sh lint
	git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror
	@# clang can't read what GCC has precompiled, and reads file by file.
	@cmake --preset release -Wno-dev -B build/lint -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_UNITY_BUILD=OFF
	sed -n 's|^ *"file": "$(CURDIR)/\(src/.*\.cc\)",*$$|\1|p' build/lint/compile_commands.json | sort -u | \
	  xargs -P "$$(nproc)" -n 4 clang-tidy --quiet -p build/lint

clean:
	rm -rf build
