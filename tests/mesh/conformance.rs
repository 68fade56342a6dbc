//! What every transport must do, run on each of them with whole nodes: virtual time for the switchboard, QUIC on
//! loopback in real time, waiting on conditions with generous deadlines.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tussock::config::Strategy;
use tussock::transport::implicit::Implicit;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Config, Keypair, Level, Node, NodeId};

use crate::backend::SwitchboardBackend;
use crate::support::{eventually, key};

/// A way to start nodes that can reach each other.
enum Medium {
    Memory(Switchboard),
    /// A backend that manages its own connections, over a switchboard.
    Implicit(Switchboard),
    Iroh,
}

impl Medium {
    fn memory() -> Self {
        Self::Memory(Switchboard::new(31, Wires::default()))
    }

    fn implicit() -> Self {
        Self::Implicit(Switchboard::new(31, Wires::default()))
    }

    async fn node(&self, n: u8) -> Node {
        self.node_with(n, 1, "default").await
    }

    async fn node_with(&self, n: u8, incarnation: u64, formation: &str) -> Node {
        let mut config = Config::default();
        config.formation.name = formation.into();
        // Only what the test asks for is linked: nobody rises to be a parent.
        config.topology.max_laterals = 0;
        config.topology.strategy = Strategy::Hybrid;
        config.topology.hybrid.promote = Some(Vec::new());
        let builder = Node::builder().config(config).name(&format!("n-{n}")).level(Level::PLATFORM);
        let builder = builder.key(key(n)).incarnation(incarnation);
        match self {
            Self::Memory(board) => builder.memory(board).spawn().await.unwrap(),
            Self::Implicit(board) => {
                let backend = SwitchboardBackend::plug_in(board, key(n).id());
                builder.transport(Implicit::over(backend)).spawn().await.unwrap()
            }
            Self::Iroh => builder.spawn().await.unwrap(),
        }
    }

    /// Tells each of two nodes where the other is.
    fn introduce(a: &Node, b: &Node) {
        a.transport().locate(b.id(), b.listen());
        b.transport().locate(a.id(), a.listen());
    }
}

async fn linked(a: &Node, b: NodeId) -> bool {
    a.transport().is_connected(&b).await.unwrap_or(false)
}

async fn connections(node: &Node) -> usize {
    node.transport().links().await.map(|links| links.connections).unwrap_or(usize::MAX)
}

async fn connect_is_idempotent(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    for _ in 0..10 {
        a.transport().connect(b.id());
    }
    eventually("linked both ways", async || linked(&a, b.id()).await && linked(&b, a.id()).await).await;
    for _ in 0..10 {
        a.transport().connect(b.id());
    }
    eventually("one connection", async || connections(&a).await == 1 && connections(&b).await == 1).await;
}

async fn two_dials_leave_one_connection(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    b.transport().connect(a.id());
    eventually("linked both ways", async || linked(&a, b.id()).await && linked(&b, a.id()).await).await;
    eventually("one connection", async || connections(&a).await == 1 && connections(&b).await == 1).await;
}

async fn a_dial_to_nobody_fails_and_harms_nothing(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    let nobody = Keypair::from_seed([99; 32]).id();
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    a.transport().locate(nobody, vec![nowhere]);
    a.transport().connect(nobody);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    eventually("the other link is up", async || linked(&a, b.id()).await).await;
    assert!(!linked(&a, nobody).await);
}

async fn a_wrong_key_is_refused(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    let expected = Keypair::from_seed([98; 32]).id();
    a.transport().locate(expected, b.listen());
    a.transport().connect(expected);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    eventually("the real one is reached", async || linked(&a, b.id()).await).await;
    assert!(!linked(&a, expected).await && !linked(&b, expected).await);
}

async fn another_formation_is_refused(medium: Medium) {
    let (a, b, c) = (medium.node(1).await, medium.node_with(2, 1, "other").await, medium.node(3).await);
    Medium::introduce(&a, &b);
    Medium::introduce(&a, &c);
    a.transport().connect(b.id());
    a.transport().connect(c.id());
    eventually("our own is linked", async || linked(&a, c.id()).await).await;
    eventually("the stranger is let go", async || connections(&b).await == 0).await;
    assert!(!linked(&a, b.id()).await);
}

async fn an_orderly_close_is_told_with_its_reason(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    eventually("linked both ways", async || linked(&a, b.id()).await && linked(&b, a.id()).await).await;
    a.transport().disconnect(b.id());
    eventually("both know", async || !linked(&a, b.id()).await && !linked(&b, a.id()).await).await;
    eventually("nothing is left", async || connections(&a).await == 0 && connections(&b).await == 0).await;
}

async fn silent_death_is_noticed_on_a_link_that_matters(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    b.transport().connect(a.id());
    eventually("linked both ways", async || linked(&a, b.id()).await && linked(&b, a.id()).await).await;
    // Nothing passes any more, and no word of it: only silence tells.
    a.transport().shut_out(BTreeSet::from([b.id()]));
    b.transport().shut_out(BTreeSet::from([a.id()]));
    eventually("both notice", async || !linked(&a, b.id()).await && !linked(&b, a.id()).await).await;
    a.transport().shut_out(BTreeSet::new());
    b.transport().shut_out(BTreeSet::new());
    eventually("the link is back", async || linked(&a, b.id()).await).await;
}

async fn the_newest_connection_wins_and_the_old_ones_end_is_harmless(medium: Medium) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    a.transport().connect(b.id());
    eventually("linked", async || linked(&b, a.id()).await).await;
    // The same identity starts again before its former connection is known to be dead.
    b.transport().shut_out(BTreeSet::from([a.id()]));
    drop(a);
    let again = medium.node_with(1, 2, "default").await;
    b.transport().shut_out(BTreeSet::new());
    Medium::introduce(&again, &b);
    again.transport().connect(b.id());
    eventually("linked again", async || linked(&b, again.id()).await && linked(&again, b.id()).await).await;
    eventually("one connection", async || connections(&b).await == 1).await;
}

async fn reconnects_leave_nothing_behind(medium: Medium, times: usize) {
    let (a, b) = (medium.node(1).await, medium.node(2).await);
    Medium::introduce(&a, &b);
    let tasks = tokio::runtime::Handle::current().metrics();
    let mut before = 0;
    for n in 0..times {
        a.transport().connect(b.id());
        eventually("linked", async || linked(&a, b.id()).await && linked(&b, a.id()).await).await;
        a.transport().disconnect(b.id());
        eventually("parted", async || connections(&a).await == 0 && connections(&b).await == 0).await;
        if n == times / 10 {
            before = tasks.num_alive_tasks();
        }
    }
    eventually("no task is left", async || tasks.num_alive_tasks() <= before + 20).await;
}

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod memory {
            use super::Medium;
            $(#[tokio::test(start_paused = true)]
            async fn $case() {
                super::$case(Medium::memory()).await;
            })*
            #[tokio::test(start_paused = true)]
            async fn a_thousand_reconnects_leave_nothing_behind() {
                super::reconnects_leave_nothing_behind(Medium::memory(), 1_000).await;
            }
        }
        mod implicit {
            use super::Medium;
            $(#[tokio::test(start_paused = true)]
            async fn $case() {
                super::$case(Medium::implicit()).await;
            })*
            #[tokio::test(start_paused = true)]
            async fn a_thousand_reconnects_leave_nothing_behind() {
                super::reconnects_leave_nothing_behind(Medium::implicit(), 1_000).await;
            }
        }
        mod iroh {
            use super::Medium;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(Medium::Iroh).await;
            })*
            // Ten thousand are in tests/endurance.rs.
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn fifty_reconnects_leave_nothing_behind() {
                super::reconnects_leave_nothing_behind(Medium::Iroh, 50).await;
            }
        }
    };
}

suite!(
    connect_is_idempotent,
    two_dials_leave_one_connection,
    a_dial_to_nobody_fails_and_harms_nothing,
    a_wrong_key_is_refused,
    another_formation_is_refused,
    an_orderly_close_is_told_with_its_reason,
    silent_death_is_noticed_on_a_link_that_matters,
    the_newest_connection_wins_and_the_old_ones_end_is_harmless,
);

mod port {
    //! The port itself, below the link machine.

    use bytes::Bytes;
    use tussock::Node;
    use tussock::id::FormationId;
    use tussock::limits::Limits;
    use tussock::proto::link::CloseReason;
    use tussock::transport::iroh::IrohTransport;
    use tussock::transport::memory::{Switchboard, Wires};
    use tussock::transport::{MeshTransport, Received, TransportError};

    use crate::support::{eventually, key};

    #[tokio::test(start_paused = true)]
    async fn a_stopped_transport_says_so() {
        let board = Switchboard::new(1, Wires::default());
        let (a, b) = (board.plug_in(key(1).id()), board.plug_in(key(2).id()));
        a.stop().await;
        assert!(matches!(a.dial(b.me(), Vec::new()).await, Err(TransportError::NotStarted)));
        assert!(a.accept().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn too_large_is_refused_before_it_is_sent() {
        let board = Switchboard::new(2, Wires::default());
        let (a, b) = (board.plug_in(key(1).id()), board.plug_in(key(2).id()));
        let connection = a.dial(b.me(), Vec::new()).await.unwrap();
        let huge = Bytes::from(vec![0; Limits::FRAME_BYTES + 5]);
        assert!(matches!(connection.send(huge), Err(TransportError::TooLarge { .. })));
        assert!(connection.is_alive());
    }

    #[tokio::test]
    async fn over_quic_too_large_is_refused_and_a_stopped_transport_says_so() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let a = IrohTransport::start(&key(1), FormationId::default(), listen).await.unwrap();
        let b = IrohTransport::start(&key(2), FormationId::default(), listen).await.unwrap();
        let connection = a.dial(b.me(), b.addresses()).await.unwrap();
        let huge = Bytes::from(vec![0; Limits::FRAME_BYTES + 5]);
        assert!(matches!(connection.send(huge), Err(TransportError::TooLarge { .. })));
        assert!(connection.is_alive());
        a.stop().await;
        assert!(matches!(a.dial(b.me(), b.addresses()).await, Err(TransportError::NotStarted)));
        assert!(a.accept().await.is_none());
        b.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_switchboard_what_was_sent_goes_before_the_end() {
        let board = Switchboard::new(3, Wires::default());
        let (a, b) = (board.plug_in(key(1).id()), board.plug_in(key(2).id()));
        let here = a.dial(b.me(), Vec::new()).await.unwrap();
        for n in 0..100u8 {
            here.send(Bytes::from(vec![0, 0, 0, 0, n])).unwrap();
        }
        here.close(CloseReason::Idle);
        let there = b.accept().await.unwrap();
        for n in 0..100u8 {
            assert_eq!(there.receive().await, Ok(Received::Frame(Bytes::from(vec![n]))));
        }
        assert_eq!(there.receive().await, Err("idle".into()));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = IrohTransport::start(&key(1), FormationId::default(), address).await;
        assert!(matches!(refused, Err(TransportError::Listen { address: named, .. }) if named == address));
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order_and_the_end_has_its_reason() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let a = IrohTransport::start(&key(1), FormationId::default(), listen).await.unwrap();
        let b = IrohTransport::start(&key(2), FormationId::default(), listen).await.unwrap();
        let here = a.dial(b.me(), b.addresses()).await.unwrap();
        for n in 0..100u32 {
            let mut frame = 6u32.to_le_bytes().to_vec();
            frame.extend([1, 2]);
            frame.extend(n.to_le_bytes());
            here.send(frame.into()).unwrap();
        }
        // What was sent goes before the end.
        here.close(CloseReason::Idle);
        let there = b.accept().await.unwrap();
        for n in 0..100u32 {
            let Ok(Received::Frame(frame)) = there.receive().await else { panic!("a frame") };
            assert_eq!(frame[2..], n.to_le_bytes());
        }
        assert_eq!(there.receive().await, Err("idle".into()));
        eventually("the end is known", async || !there.is_alive()).await;
        a.stop().await;
        b.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_no_frame_closes_its_link_with_a_reason_and_a_count_and_harms_no_other() {
        let node = Node::builder().name("n").key(key(1)).spawn().await.unwrap();
        let friend = Node::builder().name("friend").key(key(2)).spawn().await.unwrap();
        friend.transport().locate(node.id(), node.listen());
        friend.transport().connect(node.id());
        node.transport().connect(friend.id());
        eventually("the friend is linked", async || node.transport().is_connected(&friend.id()).await.unwrap()).await;
        let formation = node.config().formation_id();
        let stranger = IrohTransport::start(&key(3), formation, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let framed = |body: &[u8]| [&(body.len() as u32).to_le_bytes(), body].concat();
        let cases = [
            (vec![255; 8], "frame_too_long"),
            (framed(&[9, 0, 0]), "frame_version"),
            (framed(&[1, 200, 0]), "frame_malformed"),
            (framed(&[1, 0, 7]), "frame_truncated"),
            (framed(&[1, 1, 1, 2, 3]), "frame_truncated"),
        ];
        for (bytes, counted) in cases {
            let before = node.dropped().get(counted).copied().unwrap_or(0);
            let connection = stranger.dial(node.id(), node.listen()).await.unwrap();
            connection.send(bytes.clone().into()).unwrap();
            let reason = connection.receive().await.unwrap_err();
            assert_eq!(reason, CloseReason::Fault.label(), "{bytes:?}");
            let after = node.dropped().get(counted).copied().unwrap_or(0);
            assert!(after > before, "{bytes:?} is counted as {counted}: {:?}", node.dropped());
        }
        assert!(node.transport().is_connected(&friend.id()).await.unwrap());
        stranger.stop().await;
    }

    #[tokio::test]
    async fn a_length_that_lies_ends_the_connection_only() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let a = IrohTransport::start(&key(1), FormationId::default(), listen).await.unwrap();
        let b = IrohTransport::start(&key(2), FormationId::default(), listen).await.unwrap();
        let here = a.dial(b.me(), b.addresses()).await.unwrap();
        here.send(Bytes::from_static(&[255, 255, 255, 255, 1])).unwrap();
        let there = b.accept().await.unwrap();
        assert!(there.receive().await.unwrap_err().contains("too many"));
        a.stop().await;
        b.stop().await;
    }
}
