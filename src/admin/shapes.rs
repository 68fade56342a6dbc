//! The shapes that verbs print, built from a running node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::admin::Refused;
use crate::id::NodeId;
use crate::limits::Limits;
use crate::messages::EventRecord;
use crate::node::{Node, NodeError};
use crate::proto::aggregate::{Stats, Totals};
use crate::proto::beacon::Vitality;
use crate::proto::packet::{Target, Verdict};
use crate::proto::router::{Outcome, PublishError};
use crate::proto::summary::Summary;
use crate::proto::topology::{Standing, View};
use crate::time::Time;

/// Nodes by name, as far as this node knows them.
pub struct Names(BTreeMap<NodeId, String>);

impl Names {
    pub fn of(node: &Node) -> Self {
        let view = node.view();
        let mut names: BTreeMap<_, _> = node.names().iter().map(|(&id, name)| (id, name.to_string())).collect();
        names.insert(view.me, view.name.to_string());
        names.extend(view.path.waypoints.iter().map(|w| (w.id, w.name.to_string())));
        names.extend(view.descendants.values().map(|(_, d)| (d.id, d.name.to_string())));
        Self(names)
    }

    pub fn node(&self, id: NodeId) -> Value {
        json!({"id": id.to_string(), "name": self.0.get(&id)})
    }

    fn maybe(&self, id: Option<NodeId>) -> Value {
        id.map_or(Value::Null, |id| self.node(id))
    }
}

fn state(view: &View) -> &'static str {
    match view.standing {
        Standing::Root => "root",
        Standing::Attached => "attached",
        Standing::Detached => "detached",
        Standing::Autonomous => "autonomous",
    }
}

pub async fn status(node: &Node, socket: &Path) -> Result<Value, Refused> {
    let view = node.view();
    let names = Names::of(node);
    let report = node.router().report().await.map_err(|error| busy(&error.into()))?;
    let neighbours = node.beacons().neighbours().await.map(|table| table.len()).unwrap_or(0);
    let degraded: Vec<_> = node.degraded().iter().map(|subsystem| subsystem.label()).collect();
    let config = node.config();
    let levels = &config.topology.levels;
    let described = node.beacons().description().await.ok();
    let position = described.map_or(config.node.position, |described| described.position);
    let journal = node.journal();
    let ready = degraded.is_empty() && view.standing != Standing::Detached && journal.failing.is_none();
    let waiting_for = view.waiting_for.as_ref().filter(|_| view.level < levels.top());
    Ok(json!({
        "node": names.node(view.me),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_s": node.uptime().as_secs_f64(),
        "level": levels.label(view.level),
        "effective_level": levels.label(view.effective_level),
        "role": view.role,
        "leader": names.node(view.leader),
        "state": state(&view),
        "waiting_for": waiting_for,
        "ready": ready,
        "degraded": degraded,
        "parent": names.maybe(view.parent_id()),
        "backup": names.maybe(view.backup),
        "root": names.node(view.root()),
        "rank": view.rank(),
        "epoch": view.tenure.incarnation,
        "path": view.path.waypoints.iter().map(|w| names.node(w.id)).collect::<Vec<_>>(),
        "children": view.children.keys().map(|id| names.node(*id)).collect::<Vec<_>>(),
        "laterals": view.laterals.iter().map(|id| names.node(*id)).collect::<Vec<_>>(),
        "listen": node.listen(),
        "socket": socket,
        "data_dir": config.node.data_dir,
        "position": position,
        "geohash": position.map(|point| point.geohash(config.beacon.geohash_precision)),
        "neighbours": neighbours,
        "telemetry": {
            "acknowledged": report.counts.acknowledged,
            "rejected": report.counts.rejected,
            "outbox": if journal.on_disk { "disk" } else { "memory" },
            "outbox_depth": report.outbox_depth,
            "outbox_bytes": report.outbox_bytes,
            "committed": report.counts.committed,
            "evicted": report.counts.evicted,
            "received": { "raw": report.counts.received_raw, "summarised": report.counts.received_summarised },
            "counted": report.counted,
            "counted_by_origin":
                report.counted_by_origin.iter().map(|(id, n)| (id.to_string(), n)).collect::<BTreeMap<_, _>>(),
        },
        "journal": {
            "bytes": journal.bytes,
            "damaged": journal.damage.stretches,
            "lost_samples": journal.damage.lost_samples,
            "failing": journal.failing,
        },
        "summary": summary(&report.summary),
        "commands": {
            "issued": report.commands_issued,
            "delivered": report.commands_delivered,
            "duplicates": report.commands_duplicate,
        },
        "partition": view.partition.map(|partition| json!({
            "since_s": node.beacons().now().since(partition.since).as_secs_f64(),
            "local_root": names.node(partition.root),
        })),
        "dropped": node.dropped(),
    }))
}

/// How a node and everybody below it are.
fn summary(summary: &Summary) -> Value {
    let place = &summary.place;
    let [nominal, degraded, critical, failed] = summary.conditions;
    json!({
        "members": summary.members,
        "centroid": place.centroid(),
        "radius_m": place.radius_m,
        "bounds": place.bounds,
        "health": {"nominal": nominal, "degraded": degraded, "critical": critical, "failed": failed},
        "worst_health": summary.worst(),
        "readiness": summary.readiness(),
        "battery": summary.batteries.mean().map(|mean| json!({"mean": mean, "lowest": summary.batteries.lowest})),
        "capabilities": summary.skills.iter().map(|(kind, skill)| (kind.clone(), json!({
            "count": skill.count,
            "best_confidence": f64::from(skill.best_percent) / 100.0,
        }))).collect::<serde_json::Map<_, _>>(),
        "provisional": summary.provisional.as_ref().map(|waiting| totals(waiting)),
    })
}

/// What samples add up to.
fn totals(totals: &Totals) -> Value {
    let stats = |stats: &Stats| {
        json!({
            "count": stats.count,
            "sum": stats.sum,
            "min": stats.min,
            "max": stats.max,
            "mean": stats.mean(),
            "spread": stats.spread(),
        })
    };
    let metrics = totals.metrics.iter().map(|(name, of)| (name.clone(), stats(of)));
    json!({"samples": totals.samples, "metrics": metrics.collect::<serde_json::Map<_, _>>()})
}

/// Why a node has the parent it has; another one is asked through the tree.
pub async fn why(node: &Node, other: Option<&str>) -> Result<Value, Refused> {
    let explained = match other {
        None => node.id(),
        Some(text) => named(node, text)?,
    };
    let why = match explained == node.id() {
        true => node.topology().why().await.map_err(|error| busy(&error.into()))?,
        false => node.why(explained).await.map_err(|error| {
            let fix = "`tussock topology` shows who is in reach";
            Refused::new(5, "no_answer", error.to_string(), fix)
        })?,
    };
    let names = Names::of(node);
    let wall = |at: Time| {
        let ago = SignedDuration::try_from(why.at.since(at)).unwrap_or(SignedDuration::ZERO);
        (Timestamp::now() - ago).to_string()
    };
    let candidates: Vec<_> = why
        .candidates
        .iter()
        .map(|c| {
            json!({
                "node": names.node(c.node),
                "chosen": c.chosen,
                "score": c.score,
                "gates": c.gates,
                "factors": c.factors,
                "doubt": c.doubt,
            })
        })
        .collect();
    let last_change = why.last_change.as_ref().map(|change| {
        json!({
            "at": wall(change.at),
            "from": names.maybe(change.from),
            "to": names.maybe(change.to),
            "cause": change.cause,
            "detail": change.detail,
        })
    });
    Ok(json!({
        "node": names.node(explained),
        "parent": names.maybe(why.parent),
        "decided_at": wall(why.decided_at),
        "reason": why.reason,
        "candidates": candidates,
        "last_change": last_change,
    }))
}

pub async fn members(node: &Node) -> Result<Value, Refused> {
    let names = Names::of(node);
    let view = node.view();
    let levels = &node.config().topology.levels;
    let table = node.beacons().neighbours().await.map_err(|error| busy(&error.into()))?;
    let links = node.transport().links().await.unwrap_or_default();
    let now = node.beacons().now();
    let mut all: BTreeMap<NodeId, Value> = BTreeMap::new();
    let ids: BTreeSet<_> = (links.known.iter().copied())
        .chain(table.iter().map(|(id, _)| *id))
        .chain(links.up.keys().copied())
        .chain(view.descendants.keys().copied())
        .chain(view.path.waypoints.iter().map(|w| w.id))
        .collect();
    let prefixes: BTreeMap<_, _> = ids.iter().chain([&view.me]).map(|id| (id.prefix(), *id)).collect();
    for id in ids.into_iter().filter(|id| *id != view.me) {
        let heard = table.get(&id);
        let below = view.descendants.get(&id).map(|(_, d)| d);
        let above = view.path.waypoints.iter().position(|w| w.id == id);
        let linked = links.up.contains_key(&id);
        let in_tree = below.is_some() || above.is_some();
        let state = match heard.map(|n| n.vitality(now)) {
            Some(Vitality::Left) if !linked => "left",
            _ if linked || in_tree => "alive",
            Some(Vitality::Alive) => "alive",
            Some(Vitality::Suspect) => "suspect",
            Some(Vitality::Left) => "left",
            Some(Vitality::Expired) | None => "expired",
        };
        let via = match (linked, in_tree, heard.is_some()) {
            (true, ..) => "link",
            (_, true, _) => "tree",
            (_, _, true) => "beacon",
            _ => "static",
        };
        let path_level = above.map(|i| view.path.waypoints[i].level);
        let level = heard.map(|n| n.beacon.level).or(below.map(|d| d.level)).or(path_level);
        let by_prefix = |prefix| prefixes.get(&prefix).copied();
        let parent = match (below, above) {
            (Some(d), _) => names.node(d.parent),
            (None, Some(i)) => names.maybe(view.path.waypoints.get(i + 1).map(|w| w.id)),
            (None, None) => names.maybe(heard.and_then(|n| n.beacon.parent).and_then(by_prefix)),
        };
        let rank = heard.map(|n| n.beacon.rank).or(above.map(|i| (view.path.waypoints.len() - 1 - i) as u8));
        all.insert(
            id,
            json!({
                "node": names.node(id),
                "level": level.map(|level| levels.label(level)),
                "role": heard.map(|n| n.beacon.role),
                "state": state,
                "age_s": heard.map(|n| now.since(n.heard).as_secs_f64()),
                "rank": rank,
                "parent": parent,
                "via": via,
            }),
        );
    }
    let me = json!({
        "node": names.node(view.me),
        "level": levels.label(view.level),
        "role": view.role,
        "state": "alive",
        "age_s": 0.0,
        "rank": view.rank(),
        "parent": names.maybe(view.parent_id()),
        "via": "link",
    });
    Ok(Value::Array(std::iter::once(me).chain(all.into_values()).collect()))
}

pub async fn topology(node: &Node) -> Result<Value, Refused> {
    let names = Names::of(node);
    let view = node.view();
    let levels = &node.config().topology.levels;
    let table = node.beacons().neighbours().await.ok();
    let heard = |id: &NodeId| table.as_ref().and_then(|t| t.get(id)).map(|n| &n.beacon);
    let role = |id: &NodeId| heard(id).map(|beacon| beacon.role);
    let position = |id: &NodeId| heard(id).and_then(|beacon| beacon.point());
    let described = node.beacons().description().await.ok();
    let mut nodes = Vec::new();
    let above = view.path.waypoints.len();
    for (i, w) in view.path.waypoints.iter().enumerate().rev() {
        nodes.push(json!({
            "node": names.node(w.id),
            "level": levels.label(w.level),
            "effective_level": levels.label(w.effective_level),
            "role": role(&w.id),
            "parent": names.maybe(view.path.waypoints.get(i + 1).map(|up| up.id)),
            "rank": above - 1 - i,
            "position": position(&w.id),
        }));
    }
    nodes.push(json!({
        "node": names.node(view.me),
        "level": levels.label(view.level),
        "effective_level": levels.label(view.effective_level),
        "role": view.role,
        "parent": names.maybe(view.parent_id()),
        "rank": above,
        "position": described.and_then(|described| described.position),
    }));
    let depth_of = |id: &NodeId| {
        let (mut at, mut depth) = (*id, 0);
        while let Some((_, d)) = view.descendants.get(&at).filter(|_| depth < 16) {
            depth += 1;
            at = d.parent;
        }
        depth
    };
    let mut below: Vec<_> = view.descendants.values().map(|(_, d)| (depth_of(&d.id), d)).collect();
    below.sort_by_key(|(depth, d)| (*depth, d.id));
    for (depth, d) in below {
        nodes.push(json!({
            "node": names.node(d.id),
            "level": levels.label(d.level),
            "effective_level": levels.label(d.effective_level),
            "role": role(&d.id),
            "parent": names.node(d.parent),
            "rank": above + depth,
            "position": position(&d.id),
        }));
    }
    Ok(json!({"root": names.node(view.root()), "nodes": nodes}))
}

pub async fn actors(node: &Node) -> Result<Value, Refused> {
    let reports = node.actors().await.map_err(|error| busy(&error))?;
    let shape = |report: &crate::actors::ActorReport| {
        json!({
            "actor": report.actor.label(),
            "state": report.state,
            "restarts": report.restarts,
            "warm": report.warm,
            "last_exit": report.last_exit.as_ref().map(|exit| json!({
                "at": exit.at.to_string(),
                "kind": exit.kind.label(),
                "text": exit.text,
            })),
            "handled": report.handled,
            "mailbox": {
                "control": report.mailbox.control,
                "data": report.mailbox.data,
                "control_bound": Limits::MAILBOX_CONTROL,
                "data_bound": Limits::MAILBOX_DATA,
            },
            "uptime_s": report.uptime.as_secs_f64(),
        })
    };
    Ok(Value::Array(reports.iter().map(shape).collect()))
}

pub async fn publish(node: &Node, metrics: Vec<(String, f64)>) -> Result<Value, Refused> {
    let telemetry =
        metrics.into_iter().fold(crate::proto::sample::Telemetry::new(), |t, (name, value)| t.metric(name, value));
    let published = node.publish(telemetry).await.map_err(|error| match error {
        NodeError::Publish(refused) => {
            let fix = match refused {
                PublishError::Invalid(_) => "give KEY=NUMBER with a finite number",
                PublishError::Full { .. } => "wait for a root, or raise telemetry.outbox_bytes",
                PublishError::Journal => "make room for the data directory; `tussock status` tells what the disk said",
                PublishError::Behind => "publish less at once",
            };
            Refused::new(1, "sample_refused", refused.to_string(), fix)
        }
        other => busy(&other),
    })?;
    let names = Names::of(node);
    Ok(json!({
        "sample": {
            "origin": names.node(published.sample.origin),
            "epoch": published.sample.journal,
            "seq": published.sample.sequence,
        },
        "outcome": if published.sent { "sent" } else { "buffered" },
        "depth": published.depth,
    }))
}

/// The target that a text names.
pub fn target(node: &Node, text: &str) -> Result<Target, Refused> {
    match text {
        "everyone" => return Ok(Target::Everyone),
        "children" => return Ok(Target::Children),
        "laterals" => return Ok(Target::Laterals),
        _ => {}
    }
    let levels = &node.config().topology.levels;
    match text.split_once(':') {
        Some(("subtree", top)) => named(node, top).map(Target::Subtree),
        Some(("level", label)) => levels.parse(label).map(Target::Level).ok_or_else(|| {
            let fix = format!("use one of: {}", levels.labels().join(", "));
            Refused::new(2, "unknown_level", format!("`{label}` is not a level"), fix)
        }),
        Some(("capability", kind)) if (1..=Limits::CAPABILITY_BYTES).contains(&kind.len()) => {
            Ok(Target::Capability(kind.to_owned()))
        }
        Some(("capability", kind)) => {
            let message = format!("`{kind}` is no type of capability");
            Err(Refused::new(2, "bad_capability", message, "a type has 1 to 32 bytes"))
        }
        _ => named(node, text).map(Target::Node),
    }
}

/// The node that a text names, by name, id or id prefix.
fn named(node: &Node, text: &str) -> Result<NodeId, Refused> {
    let names = Names::of(node);
    let by_name: Vec<_> = names.0.iter().filter(|(_, name)| *name == text).map(|(&id, _)| id).collect();
    let prefix = text.to_ascii_lowercase();
    let is_prefix = prefix.len() >= 4 && prefix.chars().all(|c| c.is_ascii_hexdigit());
    let found = match by_name.is_empty() && is_prefix {
        true => names.0.keys().copied().filter(|id| id.to_string().starts_with(&prefix)).collect(),
        false => by_name,
    };
    match found.as_slice() {
        [id] => Ok(*id),
        [] => {
            let near = crate::config::nearest(text, names.0.values());
            let fix = near.map_or("`tussock members` lists the nodes".into(), |near| format!("did you mean `{near}`?"));
            Err(Refused::new(1, "unknown_node", format!("no node `{text}` is known here"), fix))
        }
        several => {
            let ids: Vec<_> = several.iter().map(NodeId::to_string).collect();
            let message = format!("`{text}` may be any of: {}", ids.join(", "));
            Err(Refused::new(2, "ambiguous_node", message, "give more digits of the id"))
        }
    }
}

pub async fn command(
    node: &Node,
    target_text: &str,
    text: String,
    deadline: Duration,
    expires: Duration,
) -> Result<Value, Refused> {
    let target = target(node, target_text)?;
    let outcome =
        node.command(target, text).deadline(deadline).expires(expires).await.map_err(|error| match error {
            NodeError::Lifetime | NodeError::CommandTooLong(_) => {
                Refused::new(2, "bad_command", error.to_string(), "change --deadline, --expires or the text")
            }
            other => busy(&other),
        })?;
    if outcome.expected.is_empty() {
        let fix = "`tussock topology` shows who is below this node";
        return Err(Refused::new(1, "nobody", "there is nobody to command", fix));
    }
    Ok(outcome_shape(&Names::of(node), &outcome))
}

fn outcome_shape(names: &Names, outcome: &Outcome) -> Value {
    let acks: Vec<_> = outcome
        .replies
        .iter()
        .map(|(id, reply)| {
            json!({
                "node": names.node(*id),
                "answer": reply.verdict,
                "text": reply.text,
                "after_s": reply.after.as_secs_f64(),
                "late": reply.late,
            })
        })
        .collect();
    let acknowledged = outcome.replies.values().filter(|reply| reply.verdict == Verdict::Accepted).count();
    json!({
        "id": outcome.command.to_string(),
        "expected": outcome.expected.len(),
        "acknowledged": acknowledged,
        "acks": acks,
        "missing": outcome.missing().map(|id| names.node(*id)).collect::<Vec<_>>(),
    })
}

/// One event as a line of `events`.
pub fn event_line(node: &Node, record: &EventRecord) -> Value {
    let names = Names::of(node);
    let mut line = json!({"seq": record.seq, "at": record.at.to_string(), "node": names.node(node.id())});
    if let (Ok(Value::Object(fields)), Value::Object(line)) = (serde_json::to_value(&record.event), &mut line) {
        line.extend(fields.into_iter().map(|(key, value)| (key, readable(&names, value))));
    }
    line
}

/// The first line of a stream of events: where the node stands.
pub fn snapshot_line(node: &Node) -> Value {
    let (names, view) = (Names::of(node), node.view());
    json!({
        "seq": 0,
        "at": Timestamp::now().to_string(),
        "node": names.node(view.me),
        "event": "snapshot",
        "state": state(&view),
        "role": view.role,
        "parent": names.maybe(view.parent_id()),
        "root": names.node(view.root()),
        "children": view.children.keys().map(|id| names.node(*id)).collect::<Vec<_>>(),
    })
}

/// Node ids inside an event are written as nodes, byte by byte ids and durations as people read them.
fn readable(names: &Names, value: Value) -> Value {
    match &value {
        Value::Array(bytes) if bytes.len() == 32 => {
            let bytes: Option<Vec<u8>> = bytes.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
            let id = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(NodeId::from_bytes);
            id.map_or(value, |id| names.node(id))
        }
        Value::Object(map) if map.contains_key("secs") && map.contains_key("nanos") => {
            let part = |key: &str| map[key].as_f64().unwrap_or(0.0);
            json!(part("secs") + part("nanos") / 1e9)
        }
        _ => value,
    }
}

/// A node that does not answer now.
pub fn busy(error: &NodeError) -> Refused {
    Refused::new(1, "not_answered", error.to_string(), "try again; `tussock actors` shows what restarts")
}
