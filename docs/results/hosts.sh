#!/bin/bash
# Fifty processes on hosts of their own, killed, frozen and cut in two, and a hundred that form their tree; prints how
# long each step took. Needs to be root.
set -euo pipefail
cd "$(dirname "$0")/../.."
TUSSOCK_REQUIRE_NETNS=1 cargo test --release --locked --test netns -- --nocapture --test-threads 1 |
    sed -e 's/^test [a-z_]* \.\.\. //' -e '/^$/d' -e '/^running/d' -e '/^ok$/d' -e '/^test result/d' -e '/^ignored/d'
