//! Every bound in the crate, in one place, each with its reason.

use std::time::Duration;

/// The bounds. When one is reached something waits, is coalesced, is dropped or is refused, and is counted.
pub struct Limits;

impl Limits {
    /// A frame on a stream. The largest is a full subtree report of 1,024 nodes (up to 200 bytes each); refused above.
    pub const FRAME_BYTES: usize = 256 * 1024;
    /// A datagram: below the smallest MTU that QUIC allows for its packets.
    pub const DATAGRAM_BYTES: usize = 64;
    /// A signed beacon with its address hints: two of them fit one gossip message.
    pub const BEACON_BYTES: usize = 1024;
    /// Capabilities in a beacon: what a beacon of [`Self::BEACON_BYTES`] has room for.
    pub const CAPABILITIES: usize = 16;
    /// Bytes of a capability's type.
    pub const CAPABILITY_BYTES: usize = 32;
    /// Address hints in a beacon: a few interfaces, both families.
    pub const ADDRESSES: usize = 8;
    /// Peers a node remembers: ten thousand static ones and as many heard ones again, 200 bytes each.
    pub const KNOWN_PEERS: usize = 20_000;
    /// Neighbours in the beacon table, the weakest claim (oldest) leaving first; 300 bytes each.
    pub const NEIGHBOURS: usize = 20_000;
    /// How often owners of state are asked to drop what has expired; what has is ignored before that too.
    pub const SWEEP: Duration = Duration::from_secs(5);
    /// Beacons kept for the next start: enough contacts to find the others again.
    pub const KEPT_BEACONS: usize = 1_024;
    /// How long a node without a parent waits at most before it turns again to whoever failed it.
    pub const ORPHAN_WAITS: Duration = Duration::from_secs(5);
    /// Dials under way: more only delay each other, and a list of dead peers must not use every socket.
    pub const DIALS: usize = 8;
    /// Connections open at once, greeted or not: some 250 KiB each.
    pub const CONNECTIONS: usize = 512;
    /// Connections that have not said hello yet; an unknown sender cannot hold more.
    pub const UNGREETED: usize = 64;
    /// How long a connection may take to say hello.
    pub const GREETING: Duration = Duration::from_secs(3);
    /// Contacts that a node without a place in the tree looks for among the peers it was given.
    pub const INTRODUCTIONS: usize = 3;
    /// How long a link that nobody needs stays open.
    pub const IDLE_LINK: Duration = Duration::from_secs(10);
    /// How long a connection may be silent before it counts as dead, and how often it is kept from that. Heartbeats tell
    /// sooner where it matters.
    pub const CONNECTION_SILENCE: Duration = Duration::from_secs(10);
    pub const KEEP_ALIVE: Duration = Duration::from_secs(4);
    /// How long a connection of gossip may carry no message. Neighbours pass on or announce every beacon, and even one
    /// lone speaker that rests is heard once in 45 s.
    pub const GOSSIP_SILENCE: Duration = Duration::from_secs(60);
    /// How often gossip that has neighbours joins a peer met on a link, for each makes room for the newcomer by letting
    /// others go; what it has saved of that, up to so many, it may spend at once: parts that meet become one.
    pub const GOSSIP_JOINS_EVERY: Duration = Duration::from_secs(120);
    pub const GOSSIP_JOINS_SAVED: u32 = 2;
    /// How soon after a new link a peer met on one is joined once more, twice as long each time, and how often at least.
    pub const GOSSIP_RETRY: Duration = Duration::from_secs(4);
    pub const GOSSIP_HEALS_EVERY: Duration = Duration::from_secs(300);
    /// How long gossip waits for a peer that it has asked to be its neighbour before it asks another. Who has neighbours
    /// enough says nothing, and where most have, who lacks one asks on and on.
    pub const GOSSIP_ASKS_EVERY: Duration = Duration::from_secs(30);
    /// How long gossip knows a message again. iroh-gossip 0.101 sends what it has kept for a peer once there is a
    /// connection, be it a minute and more after it was said; who has forgotten it by then passes it on once more. With
    /// the library's 90 s old beacons went round again at 30 Mbit/s among a hundred nodes. Some 150 bytes for each
    /// message; a thousand idle nodes say six in a second.
    pub const GOSSIP_REMEMBERS: Duration = Duration::from_secs(300);
    /// How often gossip may dial; what it has saved of that, up to what the overlay begins with, it may spend at once. A
    /// hundred nodes that all dialled whom they heard of would leave two cores no time for anything else.
    pub const GOSSIP_DIALS_EVERY: Duration = Duration::from_secs(3);
    /// Peers that the overlay of gossip begins with: as many as iroh-gossip has neighbours.
    pub const GOSSIP_BEGINS_WITH: usize = 5;
    /// How long a dial may take; QUIC's own handshake time-out is 3 s.
    pub const DIAL: Duration = Duration::from_secs(2);
    /// Nodes below one node that it knows by name and way, and as many that two children claim; 100 bytes each.
    pub const DESCENDANTS: usize = 20_000;
    /// Changes in one subtree report, so that it stays well below a frame.
    pub const SUBTREE_CHANGES: usize = 1_024;
    /// Reservations of backups that share one slot.
    pub const RESERVATIONS_PER_SLOT: usize = 4;
    /// Nodes on a path: effective levels rise strictly, and nine exist.
    pub const PATH: usize = 10;
    /// Hops of a packet before it is dropped as looping.
    pub const HOPS: u8 = 10;
    /// Hops of a coordination packet among laterals.
    pub const COORDINATION_HOPS: u8 = 3;
    /// Sources whose packets are remembered for duplicates, the least recent leaving first; 176 bytes each.
    pub const DEDUP_SOURCES: usize = 16_384;
    /// Commands that a node keeps for who attaches, and for the way back, and their bytes.
    pub const COMMANDS: usize = 4_096;
    pub const COMMANDS_BYTES: usize = 4 * 1024 * 1024;
    /// Command ids remembered as delivered: a node may be commanded 16,384 times within one lifetime.
    pub const DELIVERED: usize = 16_384;
    /// Bytes of a command's text, and of an answer's.
    pub const COMMAND_BYTES: usize = 16 * 1024;
    /// Bytes of an answer that are remembered with the command, to be said again.
    pub const ANSWER_KEPT_BYTES: usize = 256;
    /// The longest lifetime of a command.
    pub const COMMAND_LIFETIME: Duration = Duration::from_secs(24 * 3600);
    /// Candidates in an explanation for another node; 700 bytes each.
    pub const EXPLAINED: usize = 32;
    /// Nodes one command waits for.
    pub const ACKS: usize = 20_000;
    /// A sample's metrics and the bytes of a metric's name.
    pub const METRICS: usize = 64;
    pub const METRIC_NAME_BYTES: usize = 64;
    /// The largest magnitude of a metric: squares of differences, summed over every sample there will be, stay finite.
    pub const METRIC_MAGNITUDE: f64 = 1e100;
    /// Sequence numbers end here: nobody publishes that many samples, and sums of ranges cannot overflow.
    pub const LAST_SEQUENCE: u64 = 1 << 48;
    /// Distinct metrics in an account; values of further ones are left out, their samples still count.
    pub const ACCOUNT_METRICS: usize = 16_384;
    /// Types of capability told apart in a summary, and what a host's own aggregator may make of its part.
    pub const SKILLS: usize = 64;
    pub const OPAQUE_BYTES: usize = 1_024;
    /// A line of telemetry on standard input.
    pub const LINE_BYTES: usize = 64 * 1024;
    /// Distinct metrics in one window: beyond, a unit is closed early, then refused.
    pub const UNIT_METRICS: usize = 512;
    /// Bins of one sketch and sign: 512 of them span nine orders of magnitude at 2 %.
    pub const SKETCH_BINS: usize = 512;
    /// Sources in one unit, so that it stays below a frame.
    pub const UNIT_SOURCES: usize = 4_096;
    /// Ranges of sequences per source in one unit.
    pub const UNIT_SPANS: usize = 64;
    /// Samples in one offer, and their bytes, so that it stays below a frame.
    pub const OFFER_BYTES: usize = 96 * 1024;
    pub const OFFER_SAMPLES: usize = 64;
    /// How long a node waits for a receipt at least before it takes what it sent for lost.
    pub const RECEIPT: Duration = Duration::from_secs(5);
    /// How often data counts as a sign of life.
    pub const SIGN_OF_LIFE: Duration = Duration::from_millis(100);
    /// Upward packets without a receipt, after which a node waits.
    pub const IN_FLIGHT: usize = 64;
    /// What waits of one node for the request that it came with: a node sends 16 KiB and one frame before the first receipt.
    pub const EARLY_BYTES: usize = 64 * 1024;
    /// Units a relay keeps until they are committed, and their bytes. The oldest that went leaves, or of those that all wait
    /// to go the newest; its origins offer again.
    pub const RELAY_UNITS: usize = 4_096;
    pub const RELAY_BYTES: usize = 16 * 1024 * 1024;
    /// Changes of root that an origin remembers since its oldest sample that is not settled: then new samples wait for the
    /// last one, until it is.
    pub const BINDINGS: usize = 256;
    /// Gaps per source in a commit table: keeps a root of 10,000 origins under 2 MB.
    pub const GAPS: usize = 8;
    /// Origins in a commit table.
    pub const ORIGINS: usize = 65_536;
    /// Marks in one frame.
    pub const MARKS: usize = 1_024;
    /// Appends waiting for the journal: more than all mailboxes of a node can bring at once.
    pub const JOURNAL_QUEUE: usize = 65_536;
    /// Appends that one write and one sync keep: a second's worth at the fastest.
    pub const JOURNAL_BATCH: usize = 4_096;
    /// Accounts that are retired into one: each was a sink that is gone for good.
    pub const RETIRED: usize = 64;
    /// What a journal's file may grow by, beyond twice what it holds, before it is written anew.
    pub const JOURNAL_SLACK: u64 = 4 * 1024 * 1024;
    /// Effects of the router that wait for records to be kept; a few hundred bytes each.
    pub const HELD_BACK: usize = 16_384;
    /// Sequence numbers reserved at a time, so that a restart never repeats one.
    pub const SEQUENCE_BLOCK: u64 = 1_024;
    /// Messages of data waiting in one mailbox; control waits behind no more than these.
    pub const MAILBOX_DATA: usize = 256;
    /// Messages of control waiting in one mailbox.
    pub const MAILBOX_CONTROL: usize = 1_024;
    /// Frames waiting to be written on one link.
    pub const LINK_QUEUE: usize = 1_024;
    /// Events kept for hosts that lag; a slower one is told how many it missed.
    pub const EVENTS: usize = 1_024;
    /// Events shown to who did not follow.
    pub const EVENT_HISTORY: usize = 100;
    /// Counters of a host's own.
    pub const OWN_METRICS: usize = 256;
    /// How long one message may be handled before its actor counts as frozen.
    pub const HANDLER_DEADLINE: Duration = Duration::from_secs(5);
    /// Crashes granted within [`Self::RESTART_WINDOW`]; the next one escalates.
    pub const RESTARTS: usize = 5;
    pub const RESTART_WINDOW: Duration = Duration::from_secs(30);
    /// How long a host's question may take.
    pub const CALL: Duration = Duration::from_secs(5);
    /// How long an ordered stop may take.
    pub const STOP: Duration = Duration::from_secs(5);
    /// A request on the control socket.
    pub const REQUEST_BYTES: usize = 256 * 1024;
    /// Clients of the control socket at once.
    pub const CLIENTS: usize = 64;
    /// A configuration or scenario file: 10,000 static peers take 1.3 MB.
    pub const CONFIG_BYTES: u64 = 16 * 1024 * 1024;
}
