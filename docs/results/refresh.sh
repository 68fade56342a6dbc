#!/bin/sh
# Runs every command that a file here quotes at the beginning of a line, and puts its output into the block below it.
set -eu
cd "$(dirname "$0")"
file=${1:-simulator.md}
PATH="$PWD/../../target/release:$PATH"
awk '
    /^`(tussock sim|docs\/results\/[a-z]+\.sh)[ `]/ { command = substr($0, 2); sub(/`.*/, "", command); print; next }
    /^```$/ && command { print; fflush(); if (system("cd ../.. && " command)) exit 1; command = ""; inside = 1; next }
    /^```$/ { inside = 0 }
    !inside
' "$file" > "$file.new"
mv "$file.new" "$file"
