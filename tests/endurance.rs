//! What ends and begins again thousands of times leaves nothing behind. A process of its own, whose memory is measured.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tussock::config::Strategy;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, Failing, Keypair, Level, Node, NodeBuilder, NodeId, Subsystem};

const TIMES: usize = 10_000;
/// Pairs that meet and part at once over QUIC, where most of it is waiting.
const PAIRS: usize = 20;
/// What memory may grow by a time: an allocator's leeway. Threads that allocate side by side need more of it, and forty
/// nodes have not filled what they keep of events after a fifth; a connection that is left behind is ten times as large.
const LEEWAY: usize = 128;
const LEEWAY_OF_THREADS: usize = 1024;

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn node(n: u8, level: Level, config: Config) -> NodeBuilder {
    Node::builder().config(config).name(&format!("n-{n}")).level(level).key(Keypair::from_seed([n; 32])).seed(1)
}

/// A company and a platform below it.
async fn pair() -> [Node; 2] {
    let board = Switchboard::new(1, Wires::default());
    let root = node(1, Level::COMPANY, Config::default()).memory(&board).spawn().await.unwrap();
    let leaf = node(2, Level::PLATFORM, Config::default()).memory(&board).spawn().await.unwrap();
    eventually("the leaf is attached", async || leaf.view().parent_id() == Some(root.id())).await;
    [root, leaf]
}

/// Two platforms that only a host links: neither rises to be the other's parent. Over QUIC without a board.
async fn strangers(n: u8, board: Option<&Switchboard>) -> [Node; 2] {
    let mut config = Config::default();
    config.topology.max_laterals = 0;
    config.topology.strategy = Strategy::Hybrid;
    config.topology.hybrid.promote = Some(Vec::new());
    let spawn = async |n| {
        let node = node(n, Level::PLATFORM, config.clone());
        let node = match board {
            Some(board) => node.memory(board),
            None => node.listen(([127, 0, 0, 1], 0).into()),
        };
        node.spawn().await.unwrap()
    };
    let (here, there) = (spawn(n).await, spawn(n + 1).await);
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

/// Does it again and again, and compares what is held after a fifth, when everything that grows once has grown, and after
/// all.
async fn leaves_nothing_behind(what: &str, at_once: usize, leeway: usize, mut again: impl AsyncFnMut(usize)) {
    let (rounds, mut before) = (TIMES / at_once, (0, 0));
    let settled = rounds / 5;
    for n in 0..rounds {
        again(n).await;
        if n == settled {
            before = held();
        }
    }
    let after = held();
    println!("{what}: {before:?} bytes and tasks after a fifth of {TIMES}, {after:?} after all");
    assert!(after.0 <= before.0 + TIMES * leeway, "{what}: memory grew from {} to {}", before.0, after.0);
    assert!(after.1 <= before.1 + at_once.max(10), "{what}: tasks grew from {} to {}", before.1, after.1);
}

async fn restarts(node: &Node, subsystem: Subsystem) -> u64 {
    let reports = node.actors().await.unwrap();
    reports.iter().find(|report| report.actor == subsystem).unwrap().restarts
}

/// A link comes and goes.
async fn meet_and_part([here, there]: &[Node; 2]) {
    let linked = async |node: &Node, peer: NodeId| node.transport().is_connected(&peer).await.unwrap();
    let connections = async |node: &Node| node.transport().links().await.unwrap().connections;
    here.transport().connect(there.id());
    eventually("linked", async || linked(here, there.id()).await && linked(there, here.id()).await).await;
    here.transport().disconnect(there.id());
    eventually("parted", async || connections(here).await + connections(there).await == 0).await;
}

/// One test, for what is measured is the process.
#[test]
fn ten_thousand_restarts_and_reconnects() {
    // What a backtrace reads would hide what is measured.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let virtual_time = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    virtual_time.block_on(over_memory());
    drop(virtual_time);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(over_quic());
}

async fn over_memory() {
    let [root, leaf] = pair().await;
    leaves_nothing_behind("restarts", 1, LEEWAY, async |n| {
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

    let pair = strangers(3, Some(&Switchboard::new(2, Wires::default()))).await;
    leaves_nothing_behind("reconnects", 1, LEEWAY, async |_| meet_and_part(&pair).await).await;
}

async fn over_quic() {
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        pairs.push(strangers(10 + 2 * n as u8, None).await);
    }
    const IN_TURN: usize = 50;
    leaves_nothing_behind("reconnects over QUIC", PAIRS * IN_TURN, LEEWAY_OF_THREADS, async |_| {
        let of_pair = async |pair| {
            for _ in 0..IN_TURN {
                meet_and_part(pair).await;
            }
        };
        join_all(pairs.iter().map(of_pair)).await;
    })
    .await;
}
