#!/usr/bin/env bash
# `make bench` and `make bench-instructions`: installs what is missing, builds in release, and measures.
#
#   scripts/bench.sh [instructions] [--loads http1-64,opaque] [--blocks 6] [--seconds 4] [--cores 0,1] [--out FILE] [--floors strict]
#
# Ends as remora-bench ends: with its exit code, or by its signal.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/remora/target}
export REMORA_CACHE=${REMORA_CACHE:-$HOME/.cache/remora}
export REMORA_BIN_DIR=$CARGO_TARGET_DIR/bench
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$REMORA_CACHE/bin

if [ "$(id -u)" -ne 0 ]; then
    echo "bench: needs root, because pods are network and mount namespaces: run \"sudo -E make bench\"" >&2
    exit 69
fi
scripts/setup.sh bench
scripts/clean-run.sh --quiet

echo "bench: building in release, and the proxy as it ships (the first build takes some ten minutes)"
cargo build --release --locked --workspace --bins
scripts/dist.sh
mkdir -p "$REMORA_BIN_DIR"
find "$CARGO_TARGET_DIR/release" -maxdepth 1 -type f -perm -u+x -exec ln -f {} "$REMORA_BIN_DIR/" \;
ln -f "$CARGO_TARGET_DIR/dist/remora-proxy" "$REMORA_BIN_DIR/"

# In place of this shell, so that Ctrl-C and SIGTERM reach the measuring itself, which cleans up.
out=bench
if [ "${1-}" = instructions ]; then out=bench-instructions; fi
exec "$REMORA_BIN_DIR/remora-bench" --out "$CARGO_TARGET_DIR/$out.json" "$@"
