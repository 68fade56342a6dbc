# What CI runs.
ci:
    .ci/run

# Every seed from 1 to 200 of the failover scenario.
seeds:
    cargo run --release --locked -- sim failover --seeds 1..200

# Seeds of ten minutes in which everything goes wrong: a thousand, or as many as are asked for.
chaos seeds="1000":
    cargo run --release --locked -- sim chaos --seeds 1..{{seeds}}

# The figures of docs/results/paths.md.
results:
    cargo bench --locked

# The figures of docs/results/simulator.md.
simulator:
    cargo build --release --locked
    docs/results/refresh.sh

# The tables of docs/results/traffic.md: what an idle mesh costs, by its size.
traffic:
    for n in 10 30 100 300 1000 3000; do cargo run --release --locked -- sim scenarios/idle.toml --nodes $n -o json; done \
        | jq -r '.data | [.nodes, .traffic.idle_bytes_per_node_s, .formation.messages_per_node, .formation.converged_s, .wall_s, (.traffic.idle_by_kind | tojson)] | @tsv'

# Fifty processes in network namespaces, killed, frozen and cut in two, and a hundred; needs to be root.
hosts:
    docs/results/hosts.sh

# The figures of docs/results/failover.md: an hour and a quarter, and needs to be root.
failover:
    cargo build --release --locked
    docs/results/failover.sh
