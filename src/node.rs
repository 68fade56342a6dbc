//! A node: all that a host sees.

mod command;
mod handles;

pub use command::{CommandStream, IssueCommand, ReceivedCommand};
pub use handles::{
    BeaconHandle, DiscoveryHandle, JanitorHandle, MetricsHandle, RouterHandle, TopologyHandle, TransportHandle,
};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorRef};
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::actors::{ActorReport, AskError, Context, HostActor, NodeExit, NodeSupervisor, SupervisorMessage};
use crate::codec::VERSION;
use crate::config::{Config, Identity, Problem, Problems, StaticPeer};
use crate::id::{InvalidName, Keypair, NodeId, NodeName};
use crate::level::Level;
use crate::limits::Limits;
use crate::messages::{EventRecord, Failing, RouterMessage, Subsystem};
use crate::metrics::{MemoryMetrics, MetricsCollector};
use crate::proto::account::AccountId;
use crate::proto::durable::Durable;
use crate::proto::event::Event;
use crate::proto::geo::GeoPoint;
use crate::proto::node::Input;
use crate::proto::packet::{Order, Target};
use crate::proto::retirement::RetireError;
use crate::proto::router;
use crate::proto::router::{PublishError, Published};
use crate::proto::sample::Telemetry;
use crate::proto::strategy::HierarchyStrategy;
use crate::proto::summary::Aggregator;
use crate::proto::topology::{View, Why};
use crate::storage::{BeaconStorage, Beginning, DataDir, FileBeacons, Journal, JournalState, StorageError, identity};
use crate::transport::iroh::IrohTransport;
use crate::transport::memory::Switchboard;
use crate::transport::{MeshTransport, TransportError};

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("a subsystem did not start: {0}")]
    Subsystem(String),
}

/// Why a call on a node did not succeed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the node has ended: {0}")]
    Ended(NodeExit),
    #[error("a command's text has at most {limit} bytes, this has {0}", limit = Limits::COMMAND_BYTES)]
    CommandTooLong(usize),
    #[error("a command's deadline and lifetime are between 1 ms and 24 h")]
    Lifetime,
    #[error(transparent)]
    Retire(#[from] RetireError),
    #[error("{0:?} did not answer")]
    NoAnswer(NodeId),
    #[error("{0}")]
    Refused(String),
}

/// Builds a node. Everything has a default but the level's meaning, which is the mesh's.
#[derive(Clone, Debug, Default)]
pub struct NodeBuilder {
    config: Config,
    key: Option<Keypair>,
    board: Option<BoardEntry>,
    incarnation: Option<u64>,
    invalid_name: Option<InvalidName>,
    seed: Option<u64>,
    strategy: Option<Arc<dyn HierarchyStrategy>>,
    aggregator: Option<Arc<dyn Aggregator>>,
    metrics: Option<Arc<dyn MetricsCollector>>,
    beacons: Option<Arc<dyn BeaconStorage>>,
}

#[derive(Clone)]
enum BoardEntry {
    Board(Switchboard),
    Own(Arc<dyn MeshTransport>),
}

impl std::fmt::Debug for BoardEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a transport of the host's")
    }
}

impl NodeBuilder {
    /// Starts from a configuration that was read.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// A human name: lower-case letters, digits and dashes. A name that is none is refused by [`Self::spawn`].
    pub fn name(mut self, name: &str) -> Self {
        match NodeName::new(name) {
            Ok(name) => self.config.node.name = Some(name),
            Err(invalid) => self.invalid_name = Some(invalid),
        }
        self
    }

    pub fn level(mut self, level: Level) -> Self {
        self.config.node.level = self.config.topology.levels.label(level);
        self
    }

    pub fn position(mut self, position: GeoPoint) -> Self {
        self.config.node.position = Some(position);
        self
    }

    /// Where the identity is kept; without one, a new identity at each start.
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.node.data_dir = Some(directory.into());
        self
    }

    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.config.transport.listen = address;
        self
    }

    /// Somebody to introduce itself to.
    pub fn peer(mut self, id: NodeId, addresses: Vec<SocketAddr>) -> Self {
        self.config.discovery.fixed.peers.push(StaticPeer { id, addresses, priority: 0 });
        self
    }

    /// The identity, instead of a new one or the data directory's.
    pub fn key(mut self, key: Keypair) -> Self {
        self.key = Some(key);
        self
    }

    /// Joins a switchboard in this process instead of a network.
    pub fn memory(mut self, board: &Switchboard) -> Self {
        self.board = Some(BoardEntry::Board(board.clone()));
        self
    }

    /// A transport of the host's own, started, for the identity given by [`Self::key`].
    pub fn transport(mut self, transport: Arc<dyn MeshTransport>) -> Self {
        self.board = Some(BoardEntry::Own(transport));
        self
    }

    /// Which run of this identity it is, for a host that keeps the key itself. Must rise from run to run.
    pub fn incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// Draws jitter and numbers from a seed, for tests that must repeat. Without one the system's entropy is taken.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// A hierarchy strategy of the host's own, instead of the configured one; every node of the mesh has the same.
    pub fn strategy(mut self, strategy: Arc<dyn HierarchyStrategy>) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// What merges the opaque part of node states on their way up; every node of the mesh has the same.
    pub fn aggregator(mut self, aggregator: Arc<dyn Aggregator>) -> Self {
        self.aggregator = Some(aggregator);
        self
    }

    /// Where the runtime's measurements go, instead of into memory.
    pub fn metrics(mut self, collector: Arc<dyn MetricsCollector>) -> Self {
        self.metrics = Some(collector);
        self
    }

    /// Where neighbours are kept for the next start, instead of in the data directory.
    pub fn beacon_storage(mut self, storage: Arc<dyn BeaconStorage>) -> Self {
        self.beacons = Some(storage);
        self
    }

    /// Starts the supervisor and its actors. Dropping the future leaves nothing running.
    pub async fn spawn(self) -> Result<Node, SpawnError> {
        let Self { config, key, board, incarnation, invalid_name, seed, strategy, aggregator, metrics, beacons } = self;
        if let Some(invalid) = invalid_name {
            return Err(invalid.into());
        }
        let problem = |(key, message, fix): (&str, String, String)| Problem {
            message,
            place: None,
            origin: Some(key.to_owned()),
            fix: Some(fix),
        };
        let problems: Vec<_> = config.problems().into_iter().map(problem).collect();
        if !problems.is_empty() {
            return Err(Problems(problems).into());
        }
        let key = match (&key, &config.node.data_dir) {
            (Some(key), _) => key.clone(),
            (None, Some(directory)) => identity(directory)?,
            (None, None) => Keypair::generate(),
        };
        let short = key.id().short();
        let name = config.node.name.clone().or_else(|| NodeName::new(&format!("node-{short}")).ok());
        let name = name.ok_or_else(|| SpawnError::Subsystem("no name".into()))?;
        let directory = match &config.node.data_dir {
            Some(path) => Some(DataDir::open(path, name.as_str())?),
            None => None,
        };
        let incarnation = match (&directory, incarnation) {
            (_, Some(incarnation)) => incarnation,
            (Some(directory), None) => directory.next_incarnation()?,
            (None, None) => 1,
        };
        let [account_low, account_high, journal, seed] = numbers(seed, key.id());
        let mut account = [0; 16];
        account[..8].copy_from_slice(&account_low.to_le_bytes());
        account[8..].copy_from_slice(&account_high.to_le_bytes());
        let account = AccountId(account);
        let beacons = match (beacons, &directory) {
            (None, Some(directory)) => Some(Arc::new(FileBeacons::in_dir(directory.path())?) as Arc<dyn BeaconStorage>),
            (beacons, _) => beacons,
        };
        let (journal, durable) = match directory {
            Some(directory) => {
                let fresh = Beginning { version: VERSION, node: key.id(), journal, account };
                Journal::open(directory, fresh, incarnation, config.is_sink())?
            }
            None => {
                let durable = Durable::new(journal, config.is_sink().then_some(account));
                (Journal::in_memory(durable.clone()), durable)
            }
        };
        // When nothing can be wrong on the disk any more.
        let transport: Arc<dyn MeshTransport> = match &board {
            Some(BoardEntry::Board(board)) => board.plug_in(key.id()),
            Some(BoardEntry::Own(transport)) => transport.clone(),
            None => IrohTransport::start(&key, config.formation_id(), config.transport.listen).await?,
        };
        let account = durable.account.as_ref().map_or(account, |kept| kept.id);
        let identity = Identity { id: key.id(), name, incarnation, account, seed };
        let mut settings = config.settings(&identity);
        settings.router.aggregator = aggregator;
        settings.topology.strategy = strategy.unwrap_or(settings.topology.strategy);
        settings.description.addresses = transport.addresses();
        settings.description.addresses.truncate(Limits::ADDRESSES);
        (settings.topology.fence, settings.topology.known_root) = (durable.fence, durable.known_root);
        let metrics = metrics.unwrap_or_else(|| Arc::new(MemoryMetrics::default()));
        let context = Context::new(settings, Arc::new(config), key, transport, journal, metrics, beacons);
        let (ended, degraded) = (watch::Sender::new(None), watch::Sender::new(Vec::new()));
        let arguments = (context.clone(), ended.clone(), degraded.clone());
        let spawned = Actor::spawn(None, NodeSupervisor, arguments).await;
        let (supervisor, _) = spawned.map_err(|error| SpawnError::Subsystem(error.to_string()))?;
        let inner = Inner { context, supervisor, ended, degraded };
        Ok(Node { inner: Arc::new(inner) })
    }
}

/// Fresh numbers: from the operating system, or from a seed and the node's id.
fn numbers(seed: Option<u64>, me: NodeId) -> [u64; 4] {
    let mut bytes = [0; 32];
    match seed {
        Some(seed) => bytes = *blake3::hash(&[&seed.to_le_bytes(), me.as_bytes().as_slice()].concat()).as_bytes(),
        None => SysRng.try_fill_bytes(&mut bytes).expect("the operating system has entropy"),
    }
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|b| bytes[i * 8 + b])))
}

/// A running node. Clones are the same node; dropping the last one stops it without goodbye.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    supervisor: ActorRef<SupervisorMessage>,
    ended: watch::Sender<Option<NodeExit>>,
    degraded: watch::Sender<Vec<Subsystem>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A supervisor that has stopped already needs no telling.
        let _ = self.supervisor.cast(SupervisorMessage::Drop);
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", self.name()).field("id", &self.id()).finish()
    }
}

impl Node {
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    pub fn id(&self) -> NodeId {
        self.inner.context.settings.me()
    }

    pub fn name(&self) -> &NodeName {
        self.inner.context.settings.name()
    }

    pub fn config(&self) -> &Config {
        &self.inner.context.config
    }

    /// Where others reach this node.
    pub fn listen(&self) -> Vec<SocketAddr> {
        self.inner.context.transport.addresses()
    }

    /// How what must not be forgotten is kept.
    pub fn journal(&self) -> JournalState {
        self.inner.context.journal.state()
    }

    /// The node's place in the tree, as last decided.
    pub fn view(&self) -> Arc<View> {
        self.inner.context.view.borrow().clone()
    }

    /// Is told of every change of [`Self::view`].
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.inner.context.view.subscribe()
    }

    /// The names of nodes that this node has met on links.
    pub fn names(&self) -> Arc<BTreeMap<NodeId, NodeName>> {
        self.inner.context.names()
    }

    /// How long the node has been running, on its own clock.
    pub fn uptime(&self) -> Duration {
        self.inner.context.now().since(crate::time::Time::ZERO)
    }

    /// Optional subsystems that could not be kept running.
    pub fn degraded(&self) -> Vec<Subsystem> {
        self.inner.degraded.borrow().clone()
    }

    /// What was dropped, by why.
    pub fn dropped(&self) -> BTreeMap<&'static str, u64> {
        self.inner.context.counters.dropped()
    }

    /// Publishes one sample. Returns once it is in the outbox: acknowledged.
    ///
    /// Cancel-safe: a dropped call has stored the sample or not.
    pub async fn publish(&self, telemetry: Telemetry) -> Result<Published, NodeError> {
        let router = &self.inner.context.addresses.router;
        Ok(router.ask(|reply| RouterMessage::Publish { telemetry, reply }).await??)
    }

    /// Counts telemetry that the host could not make a sample of, and tells why in an event.
    pub fn reject(&self, reason: impl Into<String>) {
        self.inner.context.give(Input::Router(router::Input::Rejected(reason.into())));
    }

    /// Issues a command; await it for the answers, after setting a deadline if five seconds do not fit.
    pub fn command(&self, target: Target, text: impl Into<String>) -> IssueCommand {
        let (deadline, expires) = (Duration::from_secs(5), Duration::from_secs(60));
        IssueCommand { node: self.clone(), target, order: Order::Host(text.into()), deadline, expires }
    }

    /// Why another node has the parent it has, by its own account: the best candidates, times on its own clock.
    pub async fn why(&self, other: NodeId) -> Result<Why, NodeError> {
        let (order, deadline) = (Order::Explain, Limits::CALL);
        let target = Target::Node(other);
        let asked = IssueCommand { node: self.clone(), target, order, deadline, expires: deadline };
        let reply = asked.await?.replies.remove(&other).and_then(|reply| reply.why);
        reply.map(|why| *why).ok_or(NodeError::NoAnswer(other))
    }

    /// The commands for this host. Asking for them again takes them away from who asked before.
    pub fn commands(&self) -> CommandStream {
        let (sender, receiver) = mpsc::channel(Limits::MAILBOX_DATA);
        self.inner.context.host.send_replace(Some(sender));
        CommandStream { context: self.inner.context.clone(), receiver, ended: self.inner.ended.subscribe() }
    }

    /// What happens from now on. A reader that lags is told how much it missed.
    pub fn events(&self) -> EventStream {
        EventStream { records: self.inner.context.events.subscribe(), ended: self.inner.ended.subscribe() }
    }

    /// Stops a subsystem in order and starts it again from its snapshot. Handles stay valid.
    pub async fn restart(&self, subsystem: Subsystem) -> Result<(), NodeError> {
        self.supervise(|reply| SupervisorMessage::Restart { subsystem, reply }).await
    }

    /// Makes a subsystem fail, to see its supervision at work.
    pub fn fail(&self, subsystem: Subsystem, failing: Failing) -> Result<(), NodeError> {
        self.cast(SupervisorMessage::Fail { subsystem, failing })
    }

    /// Ends a subsystem at its next await, to see its supervision at work.
    pub fn kill(&self, subsystem: Subsystem) -> Result<(), NodeError> {
        self.cast(SupervisorMessage::Kill { subsystem })
    }

    /// How each subsystem is doing.
    pub async fn actors(&self) -> Result<Vec<ActorReport>, NodeError> {
        self.supervise(SupervisorMessage::Report).await
    }

    /// Puts an actor of the host's under this node's supervisor: it restarts as the subsystems do.
    pub async fn adopt(&self, name: impl Into<String>, actor: HostActor) -> Result<(), NodeError> {
        let name = name.into();
        let adopted: Result<(), String> =
            self.supervise(|reply| SupervisorMessage::Adopt { name, actor, reply }).await?;
        adopted.map_err(NodeError::Refused)
    }

    pub fn beacons(&self) -> BeaconHandle<'_> {
        BeaconHandle(&self.inner.context)
    }

    pub fn topology(&self) -> TopologyHandle<'_> {
        TopologyHandle(&self.inner.context)
    }

    pub fn router(&self) -> RouterHandle<'_> {
        RouterHandle(&self.inner.context)
    }

    pub fn transport(&self) -> TransportHandle<'_> {
        TransportHandle(&self.inner.context)
    }

    pub fn discovery(&self) -> DiscoveryHandle<'_> {
        DiscoveryHandle(&self.inner.context)
    }

    pub fn metrics(&self) -> MetricsHandle<'_> {
        MetricsHandle(self)
    }

    pub fn janitor(&self) -> JanitorHandle<'_> {
        JanitorHandle(&self.inner.context)
    }

    /// Stops in order: says goodbye, closes links, then the actors in reverse.
    pub async fn shutdown(&self) -> Result<(), NodeError> {
        let (reply, stopped) = oneshot::channel();
        self.cast(SupervisorMessage::Stop(reply))?;
        let _ = timeout(Limits::STOP + Limits::STOP, stopped).await;
        // The data directory is free when this returns.
        self.inner.context.journal.close().await;
        Ok(())
    }

    /// Waits for the node's end and says why.
    pub async fn wait(&self) -> NodeExit {
        let mut ended = self.inner.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        exit.unwrap_or(NodeExit::Dropped)
    }

    fn cast(&self, message: SupervisorMessage) -> Result<(), NodeError> {
        self.inner.supervisor.cast(message).map_err(|_| NodeError::Ended(self.exit()))
    }

    async fn supervise<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> SupervisorMessage,
    ) -> Result<T, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.cast(message(reply))?;
        let answered = timeout(Limits::CALL * 2, answer).await.map_err(|_| AskError::TimedOut)?;
        answered.map_err(|_| NodeError::Ended(self.exit()))
    }

    fn exit(&self) -> NodeExit {
        self.inner.ended.borrow().clone().unwrap_or(NodeExit::Stopped)
    }
}

/// A stream of events.
pub struct EventStream {
    records: broadcast::Receiver<EventRecord>,
    ended: watch::Receiver<Option<NodeExit>>,
}

impl EventStream {
    /// The next event; `None` when the node has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<EventRecord> {
        let received = tokio::select! {
            biased;
            received = self.records.recv() => received,
            _ = self.ended.wait_for(Option::is_some) => return None,
        };
        match received {
            Ok(record) => Some(record),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(EventRecord { seq: 0, at: jiff::Timestamp::now(), event: Event::Lagged { missed } })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The key in a data directory, made if there is none.
pub fn data_dir_identity(directory: &Path) -> Result<NodeId, StorageError> {
    Ok(identity(directory)?.id())
}
