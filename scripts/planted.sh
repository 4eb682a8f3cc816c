#!/bin/sh
# Proves that the fuzz corpora notice mistakes: builds this workspace's own crates once more, with the mistakes of
# core/src/planted.rs in them, and runs fuzz/tests/planted.rs, which makes one after the other.
#
# Called without arguments by people and `make test`. Cargo calls it again as the compiler's wrapper, with the compiler
# and its arguments: cargo does that for members of the workspace only, and keeps what comes out apart from ordinary
# builds, so that no dependency is compiled twice and no mistake gets into a binary.
set -eu

if [ "$#" -gt 0 ]; then
    exec "$@" --cfg planted
fi
cd "$(dirname "$0")/.."
# The whole workspace, so that dependencies have the features that they were built with already.
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/planted.sh exec cargo test --quiet --workspace --locked --test planted
