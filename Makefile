# The front door. `make` alone prints this list.
# Every cargo command of the checks uses one profile (dev) and one feature set, so no crate is compiled twice.

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench bench-fastfile bench-peers soak lint fmt docs fixtures clean

OUT ?= demo-out
SOAK_BYTES ?= 100GiB

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## check the tools, install what cargo and pip can install (nothing is done twice)
	@sh scripts/setup

demo: ## stream from a local S3 through a FIFO into an unmodified reader, and draw how a download compares
	@sh scripts/setup build
	cargo build --release --locked
	target/release/standpipe demo --out $(OUT)
	@echo "the picture and the numbers are in $(OUT)/:"
	@ls $(OUT)

test: setup ## run every check; CI runs this and nothing else
	@python3 scripts/check.py

bench: ## measure this machine: criterion benches with their baselines in the same run (release build)
	@sh scripts/setup build
	cargo bench --locked --workspace --all-features --bench '*'

bench-fastfile: ## the mount beside rclone, s3fs and local files, into bench-out; ARGS="--quick --row files" for less (release build)
	@sh scripts/setup peers
	@mkdir -p bench-out
	cargo bench --locked --workspace --all-features --bench fastfile -- $(ARGS) \
	    --json $(CURDIR)/bench-out/fastfile.json --svg $(CURDIR)/bench-out/fastfile.svg

bench-peers: ## the Python package beside its peers, into bench-out; ARGS="--quick --row tar", ARGS=--list (release build)
	@sh scripts/setup python-peers
	cargo build --release --locked --workspace --all-features --bins --example sum
	rm -f target/peers-wheel/*.whl
	.venv/bin/maturin build --release --locked --features as-tested --manifest-path python/Cargo.toml \
	    --interpreter .venv/bin/python --out target/peers-wheel
	.peers/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/peers-wheel/*.whl
	PYTHONPATH=$(CURDIR)/.torch .peers/bin/python benches/peers/bench.py $(ARGS)

soak: setup ## SOAK_BYTES=100GiB under a 5 % fault rate, cat and pipe, plain and TLS, in minutes (release build)
	STANDPIPE_SOAK_BYTES=$(SOAK_BYTES) cargo nextest run --locked --cargo-profile release --workspace --all-features \
	    --profile soak -E 'test(/^soak::/)'

lint: setup ## formatting, clippy, documentation, licences, Python
	@python3 scripts/check.py --only fmt clippy clippy-library docs licences python

fmt: setup ## format Rust and Python
	cargo fmt --all
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: setup ## build the API documentation of the crates and of the Python package
	@sh scripts/setup torch
	@python3 scripts/check.py --only docs install reference
	@echo "target/doc/standpipe/index.html, target/doc/python/standpipe.html"

fixtures: ## make the sample dataset (fixtures/data), if it is missing or stale
	@sh scripts/setup build
	@python3 fixtures/generate.py

clean: ## remove everything that was built or generated
	cargo clean
	rm -rf .venv .torch .frameworks .peers fixtures/data demo-out bench-out
