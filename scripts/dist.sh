#!/usr/bin/env bash
# Builds the proxy as it ships: dist/remora-proxy in the target directory. It is linked statically, and its relocations are
# packed: decision 17.
set -euo pipefail

cd "$(dirname "$0")/.."
exec cargo rustc --profile dist --locked -p remora-proxy --bin remora-proxy -- \
    -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
    -C link-arg=-Wl,--icf=all
