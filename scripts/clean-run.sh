#!/usr/bin/env bash
# `make clean-run`: removes what runs that were killed left behind. What belongs to a living process stays.
#
# Two kinds of things can stay: the named network namespaces of the init container's tests (remora-init-PID-N and
# remora-node-PID-N), and a node's working directory (remora-node-PID-BORN-N in the temporary directory). Processes and
# mounts cannot: the kernel ends them with their node's namespaces.
set -euo pipefail

export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
quiet=''
[ "${1-}" != --quiet ] || quiet=yes
removed=0

say() { [ -n "$quiet" ] || printf 'clean-run: %s\n' "$*"; }

# When process $1 began, in clock ticks since boot; nothing if there is none. The name in parentheses may hold blanks.
born() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${stat##*)}
    echo "${20}"
}

for path in /run/netns/remora-*; do
    name=${path##*/}
    [[ $name =~ ^remora-(init|node)-([0-9]+)-[0-9]+$ ]] || continue
    if [ -z "$(born "${BASH_REMATCH[2]}")" ]; then
        ip netns delete "$name"
        removed=$((removed + 1))
        say "removed the network namespace $name"
    fi
done

for path in "${TMPDIR:-/tmp}"/remora-node-*; do
    [[ ${path##*/} =~ ^remora-node-([0-9]+)-([0-9]+)-[0-9]+$ ]] || continue
    if [ "$(born "${BASH_REMATCH[1]}")" != "${BASH_REMATCH[2]}" ]; then
        rm -rf --one-file-system "$path"
        removed=$((removed + 1))
        say "removed $path"
    fi
done
[ "$removed" -gt 0 ] || say "nothing was left behind"
