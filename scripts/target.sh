#!/usr/bin/env bash
# Makes the target folder this checkout's.
#
# It is the user's, so that a second checkout need not compile every dependency again. But cargo knows the crates of a
# workspace by their path within it, and changes by their time: what one checkout built would be taken for what another
# one has, wherever that one's files are older. So what another checkout built of its own crates is removed.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/remora/target}
readonly MARK=$CARGO_TARGET_DIR/checkout

if [ -d "$CARGO_TARGET_DIR" ] && [ "$(cat "$MARK" 2>/dev/null)" != "$PWD" ]; then
    for profile in dev release dist; do
        cargo clean --quiet --locked --workspace --profile "$profile"
    done
fi
mkdir -p "$CARGO_TARGET_DIR"
printf '%s\n' "$PWD" >"$MARK"
