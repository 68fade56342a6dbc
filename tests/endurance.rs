//! What ends and begins again thousands of times leaves nothing behind. A process of its own, whose memory is measured.

use std::time::Duration;

use tokio::time::Instant;
use tussock::config::Strategy;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, Failing, Keypair, Level, Node, NodeId, Subsystem};

const TIMES: usize = 10_000;
/// After so many everything that grows once has grown.
const SETTLED: usize = TIMES / 5;
/// What memory may grow by from there on: an allocator's leeway, some 128 bytes a time.
const LEEWAY: usize = 1024 * 1024;

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn spawn(board: &Switchboard, n: u8, level: Level, config: Config) -> Node {
    let node = Node::builder().config(config).name(&format!("n-{n}")).level(level).key(Keypair::from_seed([n; 32]));
    node.memory(board).seed(1).spawn().await.unwrap()
}

/// A company and a platform below it.
async fn pair() -> [Node; 2] {
    let board = Switchboard::new(1, Wires::default());
    let root = spawn(&board, 1, Level::COMPANY, Config::default()).await;
    let leaf = spawn(&board, 2, Level::PLATFORM, Config::default()).await;
    eventually("the leaf is attached", async || leaf.view().parent_id() == Some(root.id())).await;
    [root, leaf]
}

/// Two platforms that only a host links: neither rises to be the other's parent.
async fn strangers() -> [Node; 2] {
    let board = Switchboard::new(2, Wires::default());
    let mut config = Config::default();
    config.topology.max_laterals = 0;
    config.topology.strategy = Strategy::Hybrid;
    config.topology.hybrid.promote = Some(Vec::new());
    let here = spawn(&board, 3, Level::PLATFORM, config.clone()).await;
    let there = spawn(&board, 4, Level::PLATFORM, config).await;
    here.transport().locate(there.id(), there.listen());
    there.transport().locate(here.id(), here.listen());
    [here, there]
}

/// Bytes of memory that the process has, and tasks that are alive.
fn held() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096, tokio::runtime::Handle::current().metrics().num_alive_tasks())
}

/// Does it again and again, and compares what is held after some and after all.
async fn leaves_nothing_behind(what: &str, mut again: impl AsyncFnMut(usize)) {
    let mut before = (0, 0);
    for n in 0..TIMES {
        again(n).await;
        if n == SETTLED {
            before = held();
        }
    }
    let after = held();
    println!("{what}: {before:?} bytes and tasks after {SETTLED}, {after:?} after {TIMES}");
    assert!(after.0 <= before.0 + LEEWAY, "{what}: memory grew from {} to {}", before.0, after.0);
    assert!(after.1 <= before.1 + 10, "{what}: tasks grew from {} to {}", before.1, after.1);
}

async fn restarts(node: &Node, subsystem: Subsystem) -> u64 {
    let reports = node.actors().await.unwrap();
    reports.iter().find(|report| report.actor == subsystem).unwrap().restarts
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_restarts_and_reconnects() {
    // What a backtrace reads would hide what is measured.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let [root, leaf] = pair().await;
    leaves_nothing_behind("restarts", async |n| {
        let subsystem = Subsystem::ALL[n % Subsystem::ALL.len()];
        // Every tenth is a crash; the next comes when the window of crashes is over.
        if n % 10 > 0 {
            return leaf.restart(subsystem).await.unwrap();
        }
        let before = restarts(&leaf, subsystem).await;
        leaf.fail(subsystem, Failing::Panic).unwrap();
        eventually("it is back", async || restarts(&leaf, subsystem).await > before).await;
        tokio::time::sleep(Duration::from_secs(31)).await;
    })
    .await;
    eventually("the leaf is still attached", async || leaf.view().parent_id() == Some(root.id())).await;

    let [here, there] = strangers().await;
    let linked = async |node: &Node, peer: NodeId| node.transport().is_connected(&peer).await.unwrap();
    let connections = async |node: &Node| node.transport().links().await.unwrap().connections;
    leaves_nothing_behind("reconnects", async |_| {
        here.transport().connect(there.id());
        eventually("linked", async || linked(&here, there.id()).await && linked(&there, here.id()).await).await;
        here.transport().disconnect(there.id());
        eventually("parted", async || connections(&here).await + connections(&there).await == 0).await;
    })
    .await;
}
