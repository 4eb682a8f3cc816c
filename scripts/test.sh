#!/usr/bin/env bash
# `make test`: every check and every test, one line each, and a table at the end.
#
# A failing check does not stop the others: one run tells all that is wrong. Its whole output is shown. Ends with 1 when
# something failed, with 69 when the machine lacks something that cannot be installed.
#
# REMORA_TEST_THREADS sets how many tests of one program run at once (default: the number of processors, 2 at least),
# REMORA_TEST_PROGRAMS how many programs (default 3).
# With CI=true, the default here, a test that cannot run (no root, no namespaces) fails; CI=false lets it be left out.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/remora/target}
export REMORA_CACHE=${REMORA_CACHE:-$HOME/.cache/remora}
export REMORA_BIN_DIR=$CARGO_TARGET_DIR/debug
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$REMORA_CACHE/bin
export CI=${CI:-true}
export CARGO_TERM_COLOR=never
readonly DENY=$REMORA_CACHE/tools/cargo-deny-0.20.2/bin/cargo-deny

processors=$(nproc)
threads=${REMORA_TEST_THREADS:-$((processors > 2 ? processors : 2))}
programs=${REMORA_TEST_PROGRAMS:-3}
logs=$(mktemp -d "${TMPDIR:-/tmp}/remora-test-XXXXXX")
trap 'rm -rf "$logs"' EXIT
table=$logs/table
failed=0

# step NAME COMMAND...: runs it, keeps its output, says how it ended and how long it took.
step() {
    local name=$1 log=$logs/step began=$SECONDS verdict=ok
    shift
    printf '%-34s' "$name"
    "$@" >"$log" 2>&1 </dev/null || verdict=FAILED
    if [ "$verdict" = ok ] && grep -q '^not checked:' "$log"; then verdict=$(grep -m 1 '^not checked:' "$log"); fi
    conclude "$name" "$verdict" "$began"
    [ "$verdict" != FAILED ] || cat "$log"
}

conclude() {
    local took=$((SECONDS - $3))
    printf '%5d s  %s\n' "$took" "$2"
    printf '%-34s %5d s  %s\n' "$1" "$took" "$2" >>"$table"
    [ "$2" != FAILED ] || failed=$((failed + 1))
}

# In these functions every command is chained: `set -e` is off in whatever `||` follows.
format() {
    cargo fmt --all --check && rustfmt --check --edition 2024 fuzz/fuzz_targets/*.rs
}

documentation() {
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items --locked
}

# The fuzzers are no member of the workspace, and so their lock file follows its dependencies by hand.
fuzzers_lock() {
    local fuzzers=fuzz/cargo-fuzz
    cargo metadata --locked --format-version 1 --manifest-path $fuzzers/Cargo.toml >/dev/null && return 0
    echo "If $fuzzers/Cargo.lock is out of date, run: cargo update --workspace --manifest-path $fuzzers/Cargo.toml"
    return 1
}

advisories() {
    if ! timeout 120 "$DENY" --locked fetch db >"$logs/fetch" 2>&1; then
        echo "not checked: the advisory database could not be reached"
        return 0
    fi
    "$DENY" --locked --offline check advisories
}

# program NAME: the tests of one program, its output in a file of its own, and a line when they are over.
program() {
    local log=$logs/of/$1 verdict=ok what
    case $1 in lib | bins | doc) what=(--"$1") ;; *) what=(--test "$1") ;; esac
    # --no-fail-fast: one run tells all.
    cargo test --workspace --locked --no-fail-fast "${what[@]}" -- --test-threads="$threads" \
        >"$log" 2>&1 </dev/null || verdict=FAILED
    awk -v name="$1" -v took="$SECONDS" -v verdict="$verdict" \
        '/^test result:/ { n += $4 } END { printf "  %-32s%5d s  %s, %d passed\n", name, took, verdict, n }' "$log"
    if [ "$verdict" = FAILED ]; then
        mv "$log" "$log.failed"
        return 1
    fi
}

# Several programs at once, because most tests wait most of the time; attacks first, because they take longest.
tests() {
    local began=$SECONDS verdict=ok name attacks=() others=()
    for name in $(basename -s .rs -a ./*/tests/*.rs | sort -u); do
        case $name in attacks_*) attacks+=("$name") ;; *) others+=("$name") ;; esac
    done
    echo "cargo test ($programs programs at a time, $threads tests of each, CI=$CI)"
    mkdir "$logs/of"
    export -f program
    export logs threads
    printf '%s\n' "${attacks[@]}" "${others[@]}" lib bins doc |
        xargs -P "$programs" -I NAME bash -c 'program NAME' || verdict=FAILED
    cat "$logs"/of/* >"$logs/tests"
    printf '%-34s' "cargo test --workspace"
    conclude "cargo test --workspace" "$verdict" "$began"
    [ "$verdict" = ok ] || cat "$logs"/of/*.failed || true
}

summary() {
    local passed ignored
    printf '\n%s\n' "make test: $((SECONDS / 60)) min $((SECONDS % 60)) s"
    sed 's/^/  /' "$table"
    passed=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$logs/tests")
    ignored=$(awk '/^test result:/ { n += $8 } END { print n + 0 }' "$logs/tests")
    if [ "$failed" -gt 0 ]; then
        printf '\n%s\n' "make test: $failed of the steps above FAILED"
        exit 1
    fi
    printf '\n%s\n' "make test: all passed: $passed tests, $ignored ignored"
}

began=$SECONDS
scripts/setup.sh test || exit $?
scripts/clean-run.sh --quiet
printf '%-34s' "setup"
conclude "setup" ok "$began"

step "fetch dependencies" cargo fetch --locked
step "lock file of the fuzzers" fuzzers_lock
step "format" format
step "scripts (shellcheck)" shellcheck --severity=warning scripts/*.sh .ci/run
step "dependencies (cargo deny)" "$DENY" --locked check bans licenses sources
step "advisories (cargo deny)" advisories
step "lints (clippy)" cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation" documentation
# One build for the harness's binaries and for the tests: both with the features that the tests ask for.
step "build programs and tests" cargo build --workspace --all-targets --locked
tests
step "planted mistakes (fuzz corpora)" scripts/planted.sh
summary
