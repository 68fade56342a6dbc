#!/bin/sh
# Fifty processes on hosts of their own, killed, frozen and cut in two, and a hundred; prints how long each step took. Needs
# to be root.
set -eu
cd "$(dirname "$0")/../.."
TUSSOCK_REQUIRE_NETNS=1 cargo test --release --locked --test netns -- --nocapture --test-threads 1 2> /dev/null |
    sed -e 's/^test [a-z_]* \.\.\. //' -e '/^$/d' -e '/^running/d' -e '/^ok$/d' -e '/^test result/d'
