//! Packets: what is routed through the tree, and the frames that carry them hop by hop.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{AccountId, Mark};
use crate::proto::aggregate::{Provenance, WireUnit};
use crate::proto::outbox::Offer;
use crate::proto::retirement::Retirement;
use crate::proto::summary::Summary;
use crate::proto::topology::{Fence, Tenure, Why};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Upward,
    Downward,
    Lateral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketType {
    Telemetry,
    Status,
    Command,
    Configuration,
    Coordination,
    AggregatedTelemetry,
}

/// Whom a packet is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    Node(NodeId),
    /// The children of the source.
    Children,
    /// A node and everyone below it.
    Subtree(NodeId),
    /// Everyone configured with this level.
    Level(Level),
    /// Everyone with a capability of this type.
    Capability(String),
    /// Every node of the mesh, the source included.
    Everyone,
    /// The laterals of the source.
    Laterals,
    /// The owner of an account.
    Account(AccountId),
}

/// What a command wants of its targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// For the host, in its own words.
    Host(String),
    /// The node itself says why it has the parent it has.
    Explain,
}

/// A command to nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub id: Uuid,
    pub issuer: NodeId,
    pub order: Order,
    /// The term under which it was issued.
    pub fence: Option<Fence>,
    /// What is left of its lifetime; every node subtracts what it held it for.
    pub remaining_ms: u32,
}

impl Command {
    /// Puts it under the present term if its leader issued it under an earlier one; says whether it did.
    pub fn stamp(&mut self, present: Fence) -> bool {
        let earlier = self.fence.as_mut().filter(|fence| fence.leader == present.leader && **fence < present);
        earlier.map(|fence| *fence = present).is_some()
    }
}

/// What a target says to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accepted,
    Refused,
    Failed,
    /// The target stopped between taking the command and answering it.
    Interrupted,
    /// It was issued under a term that is over, by another leader's side.
    Fenced,
}

/// What travels back to the issuer of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The node passed the command on, and says of each whether it is a target itself.
    PassedOn {
        /// Whether the node that says so is a target.
        consumes: bool,
        to: Vec<(NodeId, bool)>,
    },
    Answer {
        verdict: Verdict,
        text: String,
    },
    Explained(Box<Why>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Payload {
    Samples(Offer),
    Unit(WireUnit),
    Command(Command),
    /// What the packet's source says to a command.
    Response {
        command: Uuid,
        response: Response,
    },
    /// What an account's owner has committed, for an origin that is not below it.
    Marks(Vec<Mark>),
    /// An account will commit nothing any more.
    Retired(Retirement),
}

impl Payload {
    /// What samples or a summary of them take on the wire, about.
    pub fn telemetry_bytes(&self) -> Option<usize> {
        match self {
            Self::Samples(offer) => Some(offer.samples.iter().map(|sample| sample.bytes()).sum()),
            Self::Unit(unit) => Some(unit.bytes()),
            _ => None,
        }
    }

    /// The command that this is, or answers.
    pub fn command(&self) -> Option<Uuid> {
        match self {
            Self::Command(command) => Some(command.id),
            Self::Response { command, .. } => Some(*command),
            Self::Samples(_) | Self::Unit(_) | Self::Marks(_) | Self::Retired(_) => None,
        }
    }
}

/// A packet, routed hop by hop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataPacket {
    pub id: Uuid,
    pub source: NodeId,
    pub target: Target,
    pub direction: Direction,
    pub kind: PacketType,
    /// The source's incarnation and its count of packets: what duplicates are known by.
    pub epoch: u64,
    pub sequence: u64,
    /// Incremented by every hop.
    pub hops: u8,
    pub payload: Payload,
}

impl DataPacket {
    /// Whether a packet from outside is within its bounds.
    pub fn is_possible(&self) -> bool {
        let payload = match &self.payload {
            Payload::Samples(offer) => offer.is_possible(),
            Payload::Unit(unit) => unit.is_possible(),
            Payload::Command(command) => {
                let length = match &command.order {
                    Order::Host(text) => text.len(),
                    Order::Explain => 0,
                };
                length <= Limits::COMMAND_BYTES
                    && u128::from(command.remaining_ms) <= Limits::COMMAND_LIFETIME.as_millis()
            }
            Payload::Response { response: Response::PassedOn { to, .. }, .. } => to.len() <= Limits::CONNECTIONS,
            Payload::Response { response: Response::Answer { text, .. }, .. } => text.len() <= Limits::COMMAND_BYTES,
            Payload::Response { response: Response::Explained(why), .. } => why.is_possible(),
            Payload::Marks(marks) => marks.len() <= Limits::MARKS,
            Payload::Retired(retirement) => retirement.is_possible(),
        };
        let target = match &self.target {
            Target::Capability(kind) => (1..=Limits::CAPABILITY_BYTES).contains(&kind.len()),
            _ => true,
        };
        payload && target && self.hops <= Limits::HOPS
    }
}

/// Frames between routers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RouterFrame {
    /// Upward over a link of the tree, under both tenures; numbered within the attachment.
    Up { child: Tenure, parent: Tenure, number: u64, packet: DataPacket },
    /// Along the tree in any direction: commands and what is said to them.
    Along(DataPacket),
    /// How the child and everybody below it are: a newer one replaces the older.
    State { child: Tenure, parent: Tenure, summary: Box<Summary> },
    /// Upward packets were handled up to this number. Releases credit, nothing else.
    Receipt { number: u64 },
    /// What the root has committed.
    Marks(Vec<Mark>),
    /// A unit overlaps with what is committed: send again what is not in `have`.
    Split { unit: u64, have: Provenance },
    /// On attaching: the commands under way that are known here. Whoever is asked answers with its own, and both send
    /// what the other lacks.
    Seen { commands: Vec<Uuid>, ask: bool },
    /// A unit named sources by slots that are not known here: begin the dictionary anew.
    Dictionary,
}

impl RouterFrame {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Up { packet, .. } => match packet.kind {
                PacketType::AggregatedTelemetry => "summary",
                _ => "telemetry",
            },
            Self::Along(packet) => match packet.payload {
                Payload::Response { .. } => "response",
                Payload::Samples(_) => "telemetry",
                Payload::Marks(_) => "marks",
                Payload::Retired(_) => "retirement",
                Payload::Command(_) | Payload::Unit(_) => "command",
            },
            Self::Seen { .. } => "seen",
            Self::State { .. } => "state",
            Self::Receipt { .. } => "receipt",
            Self::Marks(_) => "marks",
            Self::Split { .. } => "split",
            Self::Dictionary => "dictionary",
        }
    }

    /// Whether a frame from outside is within its bounds.
    pub fn is_possible(&self) -> bool {
        match self {
            Self::Up { packet, .. } | Self::Along(packet) => packet.is_possible(),
            Self::Marks(marks) => marks.len() <= Limits::MARKS,
            Self::Split { have, .. } => have.is_possible(),
            Self::Seen { commands, .. } => commands.len() <= Limits::COMMANDS,
            // A summary that cannot be true is set aside by the router; the link is not to blame.
            Self::Receipt { .. } | Self::Dictionary | Self::State { .. } => true,
        }
    }
}
