#!/bin/sh
# Runs every command that docs/results/simulator.md quotes and puts its output below it.
set -eu
cd "$(dirname "$0")"
PATH="$PWD/../../target/release:$PATH"
awk '
    /^`tussock sim / { command = substr($0, 2); sub(/`.*/, "", command); print; next }
    /^```$/ && command { print; fflush(); if (system("cd ../.. && " command)) exit 1; command = ""; inside = 1; next }
    /^```$/ { inside = 0 }
    !inside
' simulator.md > simulator.new
mv simulator.new simulator.md
