# What CI runs.
ci:
    .ci/run

# Every seed from 1 to 200 of the failover scenario.
seeds:
    cargo run --release --locked -- sim failover --seeds 1..200

# The figures of docs/results/.
results:
    cargo bench --locked
