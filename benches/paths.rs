//! The paths that messages, packets and beacons take most often. `cargo bench --locked`; results in `docs/results/`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Runtime;
use tussock::actors::{Address, Envelope};
use tussock::codec::VERSION;
use tussock::id::{FormationId, NodeName};
use tussock::proto::account::AccountId;
use tussock::proto::beacon::{Beacon, Mobility, Neighbours, Resources};
use tussock::proto::durable::Record;
use tussock::proto::election::Role;
use tussock::proto::packet::{Command, DataPacket, Direction, Order, PacketType, Payload};
use tussock::proto::router::decide;
use tussock::proto::sample::{Priority, Sample};
use tussock::proto::topology::{ChildView, Descendant, Tenure, View};
use tussock::storage::{Beginning, DataDir, Journal};
use tussock::time::Time;
use tussock::transport::memory::{Switchboard, Wires};
use tussock::{Event, Failing, GeoPoint, Keypair, Level, Node, NodeId, Subsystem, Target, Telemetry};

/// Counts what it gets.
struct Counting<M>(Arc<AtomicU64>, std::marker::PhantomData<fn() -> M>);

impl<M: Send + 'static> Actor for Counting<M> {
    type Msg = M;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<M>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<M>, _: M, _: &mut ()) -> Result<(), ActorProcessingErr> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

async fn counting<M: Send + 'static>() -> (ActorRef<M>, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let (actor, _) = Actor::spawn(None, Counting(count.clone(), std::marker::PhantomData), ()).await.unwrap();
    (actor, count)
}

async fn until(count: &AtomicU64, n: u64) {
    while count.load(Ordering::Relaxed) < n {
        tokio::task::yield_now().await;
    }
}

fn messages(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    c.bench_function("message: bare ractor cast", |b| {
        b.to_async(&runtime).iter_custom(|n| async move {
            let (actor, count) = counting::<u64>().await;
            let started = Instant::now();
            for i in 0..n {
                actor.cast(i).unwrap();
            }
            until(&count, n).await;
            actor.stop(None);
            started.elapsed()
        });
    });
    c.bench_function("message: through an Address, with its permit", |b| {
        b.to_async(&runtime).iter_custom(|n| async move {
            let (actor, count) = counting::<Envelope<u64>>().await;
            let address = Address::default();
            address.set(Some(actor.clone()));
            let started = Instant::now();
            for i in 0..n {
                address.tell_data(i).await.unwrap();
            }
            until(&count, n).await;
            actor.stop(None);
            started.elapsed()
        });
    });
}

fn restarts(c: &mut Criterion) {
    std::panic::set_hook(Box::new(|_| ()));
    let runtime = Runtime::new().unwrap();
    c.bench_function("restart: panic of the router until it answers", |b| {
        b.to_async(&runtime).iter_custom(|n| async move {
            let mut took = Duration::ZERO;
            for _ in 0..n {
                let board = Switchboard::new(1, Wires::default());
                let node = Node::builder().name("n").level(Level::COMPANY).memory(&board).spawn().await.unwrap();
                node.router().report().await.unwrap();
                let mut events = node.events();
                let started = Instant::now();
                node.fail(Subsystem::Router, Failing::Panic).unwrap();
                while !matches!(events.next().await.unwrap().event, Event::ActorRestarted { .. }) {}
                node.router().report().await.unwrap();
                took += started.elapsed();
                node.shutdown().await.unwrap();
            }
            took
        });
    });
}

fn id(n: u32) -> NodeId {
    NodeId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn routing(c: &mut Criterion) {
    let (name, tenure) = (NodeName::new("n").unwrap(), Tenure::default());
    let mut view = View::alone(id(0), name.clone(), Level::SQUAD, tenure, 1024);
    let level = Level::PLATFORM;
    for n in 1..=1000 {
        let (child, since) = (id(n), Time::ZERO);
        view.children.insert(child, ChildView { tenure, serial: 1, effective_level: level, fence: None, since });
        let name = name.clone();
        let below = Descendant {
            id: child,
            name,
            level,
            effective_level: level,
            parent: id(0),
            capabilities: Vec::new(),
            account: None,
            version: (1, 1),
        };
        Arc::make_mut(&mut view.descendants).insert(child, (child, below));
    }
    let command = Command {
        id: uuid::Uuid::nil(),
        issuer: id(0),
        order: Order::Host("hold".into()),
        fence: None,
        remaining_ms: 1000,
    };
    let packet = |target| DataPacket {
        id: uuid::Uuid::nil(),
        source: id(0),
        target: Target::Node(target),
        direction: Direction::Downward,
        kind: PacketType::Command,
        epoch: 1,
        sequence: 1,
        hops: 1,
        payload: Payload::Command(command.clone()),
    };
    let packets: Vec<_> = (1..=1000).map(|n| packet(id(n))).collect();
    let mut next = 0;
    c.bench_function("route: a packet among 1,000 children", |b| {
        b.iter(|| {
            next = (next + 1) % packets.len();
            black_box(decide(&view, &packets[next], None))
        });
    });
}

fn beacon(n: u32, sequence: u64) -> Arc<Beacon> {
    Arc::new(Beacon {
        formation: FormationId::default(),
        id: id(n),
        position: None,
        level: Level::PLATFORM,
        effective_level: Level::PLATFORM,
        role: Role::Member,
        rank: 2,
        parent: None,
        root: id(0).prefix(),
        free_slots: 16,
        slots: 16,
        can_parent: true,
        parent_priority: 0,
        operational: true,
        mobility: Mobility::Unknown,
        resources: Resources::default(),
        capabilities: Vec::new(),
        ttl_s: 30,
        incarnation: 1,
        sequence,
        cell_bits: 0,
        addresses: Vec::new(),
        seal: Default::default(),
    })
}

fn beacons(c: &mut Criterion) {
    const NEIGHBOURS: u32 = 10_000;
    c.bench_function("beacon: neighbours within 1 km, of 10,000 in 50 km", |b| {
        let (mut table, here) = (Neighbours::default(), GeoPoint::new(37.77, -122.41).unwrap());
        for n in 0..NEIGHBOURS {
            // A spiral that fills the disc evenly.
            let (share, turn) = (f64::from(n) / f64::from(NEIGHBOURS), f64::from(n) * 2.4);
            let position = here.offset(25_000.0 * share.sqrt(), turn % std::f64::consts::TAU).into();
            table.observe(Time::ZERO, Arc::new(Beacon { position: Some(position), ..(*beacon(n, 1)).clone() }));
        }
        b.iter(|| black_box(table.nearby(Time::ZERO, &here, 1_000.0).len()));
    });
    c.bench_function("beacon: observed among 10,000 neighbours", |b| {
        b.iter_custom(|n| {
            let mut table = Neighbours::default();
            (0..NEIGHBOURS).for_each(|n| drop(table.observe(Time::ZERO, beacon(n, 1))));
            let mut took = Duration::ZERO;
            let mut left = n;
            let mut sequence = 2;
            while left > 0 {
                let batch = left.min(u64::from(NEIGHBOURS));
                let news: Vec<_> = (0..batch as u32).map(|n| beacon(n, sequence)).collect();
                let started = Instant::now();
                for beacon in news {
                    black_box(table.observe(Time::ZERO, beacon));
                }
                took += started.elapsed();
                (left, sequence) = (left - batch, sequence + 1);
            }
            took
        });
    });
    let key = Keypair::from_seed([1; 32]);
    let mut signed = (*beacon(1, 1)).clone();
    signed.id = key.id();
    let bytes = signed.sign(&key);
    c.bench_function("beacon: signature and fields checked", |b| b.iter(|| black_box(Beacon::verify(&bytes)).is_ok()));
}

fn sample(sequence: u64) -> Record {
    let metrics = vec![("temperature".to_owned(), sequence as f64)];
    Record::Sample(Arc::new(Sample { sequence, priority: Priority::Normal, metrics }))
}

/// As many samples as wait together are kept with one write and one sync.
fn journal(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let place = tempfile::tempdir().unwrap();
    let fresh = Beginning { version: VERSION, node: id(1), journal: 1, account: AccountId([1; 16]) };
    let (journal, _) = Journal::open(DataDir::open(place.path(), "bench").unwrap(), fresh, 1, true).unwrap();
    let session = runtime.block_on(journal.load()).unwrap().session;
    let mut group = c.benchmark_group("journal");
    for together in [1, 64, 1024] {
        group.throughput(Throughput::Elements(together));
        group.bench_function(format!("{together} samples until they are on disk"), |b| {
            b.to_async(&runtime).iter(|| join_all((1..=together).map(|n| journal.append(session, vec![sample(n)]))));
        });
    }
}

/// Samples of about 256 bytes over QUIC on loopback, from `publish` until the root has committed them; in memory.
fn telemetry(c: &mut Criterion) {
    const SAMPLES: u64 = 20_000;
    let runtime = Runtime::new().unwrap();
    let (root, leaf) = runtime.block_on(async {
        let spawn = async |n: u8, level| Node::builder().level(level).key(Keypair::from_seed([n; 32])).spawn().await;
        let (root, leaf) = (spawn(1, Level::COMPANY).await.unwrap(), spawn(2, Level::PLATFORM).await.unwrap());
        leaf.transport().locate(root.id(), root.listen());
        leaf.transport().connect(root.id());
        leaf.views().wait_for(|view| view.parent_id() == Some(root.id())).await.unwrap();
        (root, leaf)
    });
    let full = (0..14).fold(Telemetry::new(), |t, n| t.metric(format!("metric-{n}"), f64::from(n)));
    let mut group = c.benchmark_group("telemetry");
    group.throughput(Throughput::Elements(SAMPLES)).sample_size(10);
    group.bench_function("samples published, sent and committed at the root", |b| {
        b.to_async(&runtime).iter(async || {
            let counted = root.router().report().await.unwrap().counted;
            for _ in 0..SAMPLES / 1_000 {
                let published = join_all((0..1_000).map(|_| leaf.publish(full.clone()))).await;
                assert!(published.iter().all(Result::is_ok));
            }
            while root.router().report().await.unwrap().counted < counted + SAMPLES {
                tokio::task::yield_now().await;
            }
        });
    });
}

criterion_group! {
    name = paths;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = messages, restarts, routing, beacons, journal, telemetry
}
criterion_main!(paths);
