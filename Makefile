# Two commands matter: `make test` checks everything, `make demo` shows it. Both install what they need once.
ARGS ?=

.PHONY: test demo install image

test: ## the one list of checks
	@bash .ci/test

demo: ## a mesh in network namespaces, e.g. make demo ARGS=--check
	@bash .ci/install demo
	cargo build --locked --workspace --bins
	@$${CARGO_TARGET_DIR:-target}/debug/demo $(ARGS)

image: ## the tree of the image, tried in an empty chroot
	@bash .ci/check-image target/image

install: ## only what the checks need
	@bash .ci/install test
