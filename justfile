# One-word commands. Without `just`, copy the line.

# List the commands.
default:
    @just --list

# Run a working agent.
dev:
    cargo run --release -- agent run --dev

# What the README says.
test:
    cargo test

# Format, lints, both feature sets.
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo clippy --no-default-features --features client -- -D warnings

# Real clients in four languages.
interop:
    cargo build --release
    tests/interop/run

# Ratios against a baseline of the same run.
bench *ARGS:
    cargo bench {{ARGS}}

# Dependencies, licences, sources.
deny:
    cargo deny check

# Everything CI runs.
ci:
    bash .ci/run
