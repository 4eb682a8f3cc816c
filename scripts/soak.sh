#!/usr/bin/env bash
# `make soak MINUTES=30`: installs what is missing, builds in release, and runs the mesh under mixed traffic with
# certificates renewed each half minute. Ends as the soak ends: with its exit code, or by its signal.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/remora/target}
export REMORA_CACHE=${REMORA_CACHE:-$HOME/.cache/remora}
export REMORA_BIN_DIR=${REMORA_BIN_DIR:-$CARGO_TARGET_DIR/release}
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$REMORA_CACHE/bin

if [ "$(id -u)" -ne 0 ]; then
    echo "soak: needs root, because pods are network and mount namespaces" >&2
    exit 69
fi
scripts/setup.sh demo
scripts/clean-run.sh --quiet

# REMORA_SOAK_BUILD=no runs what REMORA_BIN_DIR holds.
if [ "${REMORA_SOAK_BUILD:-yes}" != no ]; then
    echo "soak: building in release"
    cargo build --release --locked --workspace --bins
fi

# In place of this shell, so that Ctrl-C and SIGTERM reach the soak itself; its namespaces end with it.
exec "$REMORA_BIN_DIR/remora-soak" --minutes "${MINUTES:-30}"
