#!/usr/bin/env bash
# `make demo`: installs what is missing, builds in release, and runs the demo.
# KEEP=1 leaves the mesh running. Ends as the demo ends: with its exit code, or by its signal.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/remora/target}
export REMORA_CACHE=${REMORA_CACHE:-$HOME/.cache/remora}
export REMORA_BIN_DIR=${REMORA_BIN_DIR:-$CARGO_TARGET_DIR/release}
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$REMORA_CACHE/bin

if [ "$(id -u)" -ne 0 ]; then
    # What root would install is said here too: whoever may not become root knows then what to ask for.
    scripts/setup.sh --dry-run demo >&2 || true
    # sudo's secure_path is not where rustup puts cargo.
    echo "demo: needs root, because pods are network and mount namespaces; run:" >&2
    echo "  sudo -E env \"PATH=\$PATH\" make demo${KEEP:+ KEEP=$KEEP}" >&2
    exit 69
fi
scripts/setup.sh demo
scripts/clean-run.sh --quiet

echo "demo: building in release (the first build takes some minutes)"
cargo build --release --locked --workspace --bins

# In place of this shell, so that Ctrl-C and SIGTERM reach the demo itself, which cleans up.
exec "$REMORA_BIN_DIR/remora-demo"
