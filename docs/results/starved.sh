#!/bin/sh
# Twelve nodes on this machine for five minutes, while four times as many busy loops as it has cores take its time; prints
# how often a node gave a living parent up.
set -eu
cd "$(dirname "$0")/../.."
tussock=$PWD/target/release/tussock
place=$(mktemp -d)
pids=
trap 'kill -9 $pids 2>/dev/null; rm -rf "$place"' EXIT INT TERM

start() {
    "$tussock" run --name "$1" --level "$2" --data-dir "$place/$1" --listen "127.0.0.1:$3" ${peer:+--peer "$peer"} \
        > "$place/$1.out" 2>&1 &
    pids="$pids $!"
}

peer=
start root company 7301
until [ -S "$place/root/tussock.sock" ]; do sleep 0.1; done
peer=$("$tussock" id --data-dir "$place/root")@127.0.0.1:7301
for n in 1 2; do start "squad-$n" squad "731$n"; done
for n in 1 2 3 4 5 6 7 8 9; do start "leaf-$n" platform "732$n"; done
until [ "$("$tussock" topology --data-dir "$place/root" -o json | jq '.data.nodes | length')" = 12 ]; do sleep 0.5; done
# Leaves that began below the root find a squad.
sleep 20
lost() {
    for node in "$place"/*/; do "$tussock" metrics --data-dir "$node" || echo dead; done |
        awk '/^tussock_events_total.*kind="peer_lost"/ { sum += $2 } /^dead/ { dead = 1 } END { print sum + 0; exit dead }'
}
before=$(lost)
loops=$(($(nproc) * 4))
for n in $(seq $loops); do
    sh -c 'while :; do :; done' &
    pids="$pids $!"
done
sleep 300
after=$(lost)
echo "$loops busy loops on $(nproc) cores, 12 nodes, 300 s: $((after - before)) parents given up that lived"
