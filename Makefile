# Two commands matter: `make test` checks everything, `make demo` shows it. Both install what they need once.
ARGS ?=

.PHONY: test test-vm demo bench fuzz image install

test: ## the one list of checks
	@bash .ci/test

test-vm: ## the agent with the WireGuard and IPIP of Debian's kernels 6.1 and 6.12, e.g. make test-vm ARGS=6.12
	@bash .ci/test-vm $(ARGS)

demo: ## a mesh in network namespaces, e.g. make demo ARGS=--check
	@bash .ci/install demo
	cargo build --locked --workspace --bins
	@$${CARGO_TARGET_DIR:-target}/debug/demo $(ARGS)

bench: ## figures beside upstream's and thresholds, e.g. make bench ARGS=one-peer
	@bash .ci/install test
	cargo build --locked --release -p kilo-kg -p kilo-kgctl
	cargo build --locked --release -p kilo-e2e --bin bench
	@$${CARGO_TARGET_DIR:-target}/release/bench $(ARGS)

fuzz: ## strangers' bytes, a minute for each reader of them
	@bash .ci/fuzz 60

image: ## the tree of the image, tried in an empty chroot
	@bash .ci/check-image target/image

install: ## only what the checks need
	@bash .ci/install test
