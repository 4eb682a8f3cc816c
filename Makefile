# The commands of this repository. `make` alone explains them.

CARGO_TARGET_DIR ?= $(HOME)/.cache/remora/target
REMORA_CACHE ?= $(HOME)/.cache/remora
export CARGO_TARGET_DIR REMORA_CACHE

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-instructions soak fuzz build clean-run

help: ## explain the commands
	@echo "Remora: a transparent mTLS sidecar mesh for Kubernetes."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Binaries are built in $(CARGO_TARGET_DIR) (set CARGO_TARGET_DIR to change that)."

demo: ## show the mesh at work in this machine's namespaces; KEEP=1 leaves it running. Needs root
	@KEEP="$(KEEP)" scripts/demo.sh

test: ## install what is missing, then run every check and test of the workspace. Needs root
	@scripts/test.sh

bench: ## measure Remora beside Envoy and beside no proxy. LOADS= LANES= BLOCKS= SECONDS= CORES= OUT= FLOORS=strict. Needs root
	@scripts/bench.sh $(if $(LOADS),--loads "$(LOADS)") $(if $(LANES),--lanes "$(LANES)") $(if $(BLOCKS),--blocks "$(BLOCKS)") \
		$(if $(SECONDS),--seconds "$(SECONDS)") $(if $(CORES),--cores "$(CORES)") \
		$(if $(OUT),--out "$(OUT)") $(if $(FLOORS),--floors "$(FLOORS)")

bench-instructions: ## count each proxy's instructions and system calls per request. LOADS= OUT=. Needs root
	@scripts/bench.sh instructions $(if $(LOADS),--loads "$(LOADS)") $(if $(OUT),--out "$(OUT)")

fuzz: ## search each fuzz target for T seconds (60)
	@scripts/setup.sh fuzz
	@T="$(or $(T),60)" scripts/fuzz.sh

soak: ## run mixed traffic for MINUTES (30) while certificates are renewed. Needs root
	@MINUTES="$(or $(MINUTES),30)" scripts/soak.sh

build: ## build every binary in release
	@scripts/setup.sh build
	cargo build --release --locked --workspace --bins

clean-run: ## remove what dead runs left behind: namespaces and temporary directories
	@scripts/clean-run.sh
