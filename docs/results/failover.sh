#!/bin/sh
# Runs what docs/results/failover.md shows and puts it in. Takes an hour and a quarter and needs to be root, for the hosts.
set -eu
cd "$(dirname "$0")/../.."
tussock=target/release/tussock

# One row: who watched whom, and how long after the fault it was detected, mended, and something acknowledged again.
row='.data as $d
    | (if $d.settled and $d.invariants.violations_total == 0 and $d.telemetry.lost == 0 then "yes" else "no" end) as $held
    | def seconds: if . == null then "–" else (. * 100 | round / 100 | tostring) end;
      def of(p): [p.p50_s, p.p99_s, p.max_s] | map(seconds) | join(" / ");
    "| " + ([$d.name, ($d.nodes | tostring), ($d.failovers | length | tostring), ($d.false_failovers | tostring),
    $held, of($d.failover_percentiles.detected), of($d.failover_percentiles.attached), of($d.failover_percentiles.first_ack)]
    | join(" | ")) + " |"'

table() {
    echo '| scenario | nodes | failovers | false | held | detected after | attached after | acknowledged after |'
    echo '|---|---|---|---|---|---|---|---|'
    for scenario in lan wan hard lan-idle wan-idle hard-idle lan-leave wan-leave; do
        for nodes in 10 100 1000; do
            # Ten nodes have one squad only.
            case $scenario$nodes in *-leave10) continue ;; esac
            $tussock sim scenarios/detection/$scenario.toml --nodes $nodes -o json | jq -r "$row"
        done
    done
}

# So many runs of each, of a hundred nodes for one hour, and for four.
quiet() {
    echo '| scenario | runs | mesh-days | false failovers |'
    echo '|---|---|---|---|'
    for runs in quiet:120 quiet-idle:180; do
        $tussock sim scenarios/detection/${runs%:*}.toml --seeds 1..${runs#*:} -o json | jq -r --arg name ${runs%:*} '.data
            | if .first then error("\($name) does not hold with seed \(.first)") else . end
            | "| " + ([$name, .runs, (.mesh_days * 100 | round / 100), .false_failovers] | map(tostring) | join(" | ")) + " |"'
    done
}

report=docs/results/failover.md
{
    sed '/<!-- table -->/q' $report
    table
    sed -n '/<!-- end of table -->/,/<!-- quiet -->/p' $report
    quiet
    sed -n '/<!-- end of quiet -->/,$p' $report
} > $report.new
mv $report.new $report
docs/results/refresh.sh failover.md
