#!/bin/sh
# Searches for inputs that break what fuzz/src promises: every target for T seconds (60 unless set), one after another.
#
#   T=10 scripts/fuzz.sh            all targets
#   scripts/fuzz.sh header          one of them
#
# Works on stable Rust: the instrumentation is a pass of LLVM that rustc runs by name, and libFuzzer comes as source in
# the libfuzzer-sys crate, so a C++ compiler is all it needs. Nothing unsafe is under test, so no sanitizer is missed.
# Ends with 1 and the input's path when something is found, with 69 when it cannot run.
set -eu

seconds=${T:-60}
root=$(cd "$(dirname "$0")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
work=$target_dir/fuzz
cd "$root/fuzz"

case $seconds in
'' | *[!0-9]*) echo "fuzz: T is the seconds per target, not \"$seconds\"" >&2; exit 64 ;;
esac
if [ "$#" -eq 0 ]; then
    for file in fuzz_targets/*.rs; do set -- "$@" "$(basename "$file" .rs)"; done
fi
for target in "$@"; do
    [ -f "fuzz_targets/$target.rs" ] || { echo "fuzz: no target $target in fuzz/fuzz_targets" >&2; exit 64; }
done
if ! command -v "${CXX:-c++}" >/dev/null; then
    echo "fuzz: libFuzzer is C++, and there is no ${CXX:-c++} here; on Debian: apt-get install g++" >&2
    exit 69
fi

host=$(rustc --version --verbose | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
echo "fuzz: building with $(rustc --version)"
# With an explicit target the flags leave build scripts and macros alone.
RUSTFLAGS=$flags cargo build --quiet --release --locked --manifest-path cargo-fuzz/Cargo.toml \
    --target "$host" --target-dir "$work"

table=$work/table
found=''
printf '%s\t%s\t%s\t%s\t%s\n' target runs seconds corpus verdict >"$table"
for target in "$@"; do
    mkdir -p "$work/corpus/$target" "$work/found/$target"
    log=$work/$target.log
    echo "fuzz: $target for ${seconds} s"
    verdict=ok
    # New inputs go to the first folder; the committed corpus is only read. An input's bytes are printed by libFuzzer.
    "$work/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$work/found/$target/" \
        "$work/corpus/$target" "corpus/$target" >"$log" 2>&1 || verdict=found
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    took=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")
    inputs=$(find "$work/corpus/$target" "corpus/$target" -type f | wc -l)
    printf '%s\t%s\t%s\t%s\t%s\n' "$target" "${runs:-?}" "${took:--}" "$inputs" "$verdict" >>"$table"
    if [ "$verdict" = found ]; then
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        grep -A 2 'panicked at' "$log" >&2 || tail -n 20 "$log" >&2
        found="$found\n  $target: ${input:-see $log}"
    fi
done

echo
awk -F '\t' '{ printf "%-14s %12s %8s %8s  %s\n", $1, $2, $3, $4, $5 }' "$table"
if [ -n "$found" ]; then
    printf "\nfuzz: found something. Copy the input into fuzz/corpus/<target>, mend what it breaks, commit both:$found\n" >&2
    exit 1
fi
