//! What is wrong with a configuration as a whole: ranges, and rules across keys.

use std::time::Duration;

use crate::config::{Config, nearest};
use crate::id::NodeId;
use crate::limits::Limits;

impl Config {
    /// What is wrong with it as a whole, by key. Types were checked when it was read.
    pub fn problems(&self) -> Vec<(&'static str, String, String)> {
        let mut found = Vec::new();
        let mut check = |fine: bool, key, message: String, fix: &str| {
            if !fine {
                found.push((key, message, fix.to_owned()));
            }
        };
        let levels = &self.topology.levels;
        if levels.parse(&self.node.level).is_none() {
            let known = levels.labels().join(", ");
            let fix = match nearest(&self.node.level, levels.labels()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use one of: {known}"),
            };
            check(false, "node.level", format!("`{}` is not a level; the levels are {known}", self.node.level), &fix);
        }
        let parent = self.node.parent.as_deref();
        let parsed = parent.is_none_or(|id| id.parse::<NodeId>().is_ok());
        check(parsed, "node.parent", "the preferred parent is not a node id".into(), "give its 64 hex digits");
        for capability in &self.node.capabilities {
            let named = (1..=Limits::CAPABILITY_BYTES).contains(&capability.kind.len());
            let sure = (0.0..=1.0).contains(&capability.confidence);
            let message = format!("`{}` with confidence {} is no capability", capability.kind, capability.confidence);
            check(named && sure, "node.capabilities", message, "a type of 1 to 32 bytes, a confidence between 0 and 1");
        }
        let fits = self.node.capabilities.len() <= Limits::CAPABILITIES;
        check(fits, "node.capabilities", "too many capabilities".into(), "at most 16 fit a beacon");
        let few = self.discovery.fixed.peers.len() <= Limits::KNOWN_PEERS;
        check(few, "discovery.static.peers", "too many peers".into(), "at most 20000");
        let beacon = &self.beacon;
        check(
            beacon.ttl.0 >= beacon.interval_max.0 * 3,
            "beacon.ttl",
            format!("a ttl of {} is shorter than three intervals of {}", beacon.ttl, beacon.interval_max),
            "raise beacon.ttl or lower beacon.interval_max",
        );
        check(
            (1..=3600).contains(&beacon.ttl.0.as_secs()),
            "beacon.ttl",
            format!("{} is out of range", beacon.ttl),
            "between 1s and 1h",
        );
        check(
            beacon.interval_min.0 >= Duration::from_millis(50) && beacon.interval_min.0 <= beacon.interval_max.0,
            "beacon.interval_min",
            format!("{} is not between 50ms and beacon.interval_max", beacon.interval_min),
            "raise it, or beacon.interval_max",
        );
        check(
            (1..=12).contains(&beacon.geohash_precision),
            "beacon.geohash_precision",
            format!("{} is out of range", beacon.geohash_precision),
            "between 1 and 12",
        );
        if let Err(invalid) = self.topology.weights.check() {
            check(false, "topology.weights", invalid.to_string(), "change the weights so that they sum to 1");
        }
        let hybrid = &self.topology.hybrid;
        for (key, list) in [("topology.hybrid.promote", &hybrid.promote), ("topology.hybrid.demote", &hybrid.demote)] {
            for label in list.iter().flatten().filter(|label| levels.parse(label).is_none()) {
                let fix = format!("use some of: {}", levels.labels().join(", "));
                check(false, key, format!("`{label}` is not a level"), &fix);
            }
        }
        check(
            (1..=8).contains(&hybrid.max_levels),
            "topology.hybrid.max_levels",
            format!("{} is out of range", hybrid.max_levels),
            "between 1 and 8",
        );
        check(
            (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&self.topology.promote_after.0),
            "topology.promote_after",
            format!("{} is out of range", self.topology.promote_after),
            "between 100ms and 10m",
        );
        check(
            (0.0..=1.0).contains(&self.topology.hysteresis),
            "topology.hysteresis",
            format!("{} is out of range", self.topology.hysteresis),
            "a share between 0 and 1, such as 0.1",
        );
        check(
            (1..=1024).contains(&self.topology.max_children),
            "topology.max_children",
            format!("{} is out of range", self.topology.max_children),
            "between 1 and 1024",
        );
        check(
            self.topology.max_laterals <= 64,
            "topology.max_laterals",
            format!("{} is out of range", self.topology.max_laterals),
            "between 0 and 64",
        );
        check(
            self.topology.max_distance > 0.0 && self.topology.max_distance.is_finite(),
            "topology.max_distance",
            format!("{} is out of range", self.topology.max_distance),
            "metres, above 0",
        );
        check(
            (Duration::from_millis(50)..=Duration::from_secs(60)).contains(&self.failover.heartbeat.0),
            "failover.heartbeat",
            format!("{} is out of range", self.failover.heartbeat),
            "between 50ms and 60s",
        );
        check(
            self.failover.retries <= 100,
            "failover.retries",
            format!("{} is out of range", self.failover.retries),
            "between 0 and 100",
        );
        let backoff = &self.failover.backoff;
        check(
            !backoff.initial.0.is_zero() && backoff.initial.0 <= backoff.max.0,
            "failover.backoff.initial",
            format!("{} is not above 0 and at most failover.backoff.max", backoff.initial),
            "lower it, or raise failover.backoff.max",
        );
        check(
            (1.0..=10.0).contains(&backoff.multiplier),
            "failover.backoff.multiplier",
            format!("{} is out of range", backoff.multiplier),
            "between 1 and 10",
        );
        check(
            (4096..=1 << 36).contains(&self.telemetry.outbox_bytes),
            "telemetry.outbox_bytes",
            format!("{} is out of range", self.telemetry.outbox_bytes),
            "between 4096 and 64 GiB",
        );
        check(
            (Duration::from_millis(10)..=Duration::from_secs(600)).contains(&self.telemetry.window.0),
            "telemetry.window",
            format!("{} is out of range", self.telemetry.window),
            "between 10ms and 10m",
        );
        check(
            (1..=1_000_000).contains(&self.telemetry.window_count),
            "telemetry.window_count",
            format!("{} is out of range", self.telemetry.window_count),
            "between 1 and 1000000",
        );
        for (key, span) in
            [("partition.timeout", self.partition.timeout), ("partition.confirm", self.partition.confirm)]
        {
            let fine = (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&span.0);
            check(fine, key, format!("{span} is out of range"), "between 100ms and a day");
        }
        check(
            self.transport.open || self.transport.listen.ip().is_loopback(),
            "transport.listen",
            format!(
                "{} can be reached from other machines, and there is no formation to keep strangers out",
                self.transport.listen
            ),
            "listen on 127.0.0.1, or set transport.open = true if everyone who can reach the port may join and command",
        );
        let named = (1..=64).contains(&self.formation.name.len());
        check(named, "formation.name", "the formation's name has 1 to 64 bytes".into(), "shorten it");
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    #[test]
    fn the_defaults_have_no_problems() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn every_rule_has_its_key() {
        let mut config = Config::default();
        config.node.level = "plattoon".into();
        config.beacon.ttl = Span::secs(5);
        config.topology.weights.load = 0.9;
        config.transport.listen = "0.0.0.0:7000".parse().unwrap();
        let problems = config.problems();
        let keys: Vec<_> = problems.iter().map(|(key, _, _)| *key).collect();
        assert_eq!(keys, ["node.level", "beacon.ttl", "topology.weights", "transport.listen"]);
        assert_eq!(problems[0].2, "did you mean `platoon`?");
    }
}
