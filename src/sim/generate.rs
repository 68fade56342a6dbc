//! Generated formations: names, levels, positions, and whom each node knows at the start.

use rand::RngExt;
use rand_pcg::Pcg32;

use crate::config::{Config, Problems};
use crate::id::{NodeId, NodeName};
use crate::level::Level;
use crate::proto::geo::GeoPoint;
use crate::proto::sample::Condition;
use crate::sim::scenario::{NodeEntry, Scenario, Text};

/// A node before the run.
#[derive(Clone, Debug)]
pub struct Blueprint {
    pub name: NodeName,
    pub id: NodeId,
    pub config: Config,
    pub disk: bool,
    pub condition: Condition,
}

/// All nodes of a scenario: the generated ones, highest level first, then those written one by one.
pub fn blueprints(
    scenario: &Scenario,
    text: &Text,
    nodes: Option<usize>,
    rng: &mut Pcg32,
) -> Result<Vec<Blueprint>, Problems> {
    let base = scenario.base_config(&toml::Table::new(), text, &["mesh", "settings"])?;
    let mut all = generated(scenario, text, &base, nodes, rng)?;
    for (i, entry) in scenario.nodes.iter().enumerate() {
        let index = i.to_string();
        let mut config = scenario.base_config(&entry.settings, text, &["node", &index, "settings"])?;
        if let Some(label) = &entry.level {
            if config.topology.levels.parse(label).is_none() {
                let known = config.topology.levels.labels().join(", ");
                let problem = text.problem(&["node", &index, "level"], format!("`{label}` is not a level"), &known);
                return Err(Problems(vec![problem]));
            }
            config.node.level.clone_from(label);
        }
        config.node.position = entry.position;
        config.node.can_parent = entry.can_parent.unwrap_or(true);
        config.node.parent_priority = entry.parent_priority.unwrap_or(0);
        config.node.mobility = entry.mobility.unwrap_or_default();
        config.node.capabilities.clone_from(&entry.capabilities);
        if all.iter().any(|other| other.name == entry.name) {
            let message = format!("the name `{}` is taken", entry.name);
            return Err(Problems(vec![text.problem(&["node", &index, "name"], message, "names are unique")]));
        }
        let NodeEntry { name, disk, condition, .. } = entry;
        let (id, name) = (id_of(name), name.clone());
        all.push(Blueprint { id, name, config, disk: *disk, condition: *condition });
    }
    if all.is_empty() {
        let problem = text.problem(&["mesh"], "there are no nodes", "give counts in [mesh], or [[node]] entries");
        return Err(Problems(vec![problem]));
    }
    Ok(all)
}

/// A simulated node's id depends on its name alone, so that runs can be compared across seeds.
fn id_of(name: &NodeName) -> NodeId {
    NodeId::from_bytes(blake3::derive_key("tussock simulated node 1", name.as_str().as_bytes()))
}

fn generated(
    scenario: &Scenario,
    text: &Text,
    base: &Config,
    nodes: Option<usize>,
    rng: &mut Pcg32,
) -> Result<Vec<Blueprint>, Problems> {
    let mesh = &scenario.mesh;
    let bad = |key: &str, message: String, fix: &str| Problems(vec![text.problem(&["mesh", key], message, fix)]);
    let levels = &base.topology.levels;
    let mut counts = vec![0usize; levels.labels().len()];
    for (label, value) in &mesh.counts {
        let Some(level) = levels.parse(label) else {
            let known =
                levels.labels().iter().map(String::as_str).chain(["area_km", "center", "bootstrap", "settings"]);
            let near = crate::config::nearest(label, known);
            let fix = near.map_or_else(|| levels.labels().join(", "), |near| format!("did you mean `{near}`?"));
            return Err(bad(label, format!("unknown key `{label}`"), &fix));
        };
        let count = value.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= 100_000);
        counts[level.0 as usize] =
            count.ok_or_else(|| bad(label, format!("{value} is not a number of nodes"), "between 0 and 100000"))?;
    }
    let total: usize = counts.iter().sum();
    if let Some(nodes) = nodes {
        scale(&mut counts, nodes);
    }
    let grown = nodes.map_or(1.0, |nodes| nodes as f64 / total.max(1) as f64);
    let number = |value: &toml::Value| value.as_float().or(value.as_integer().map(|n| n as f64));
    let area_km = number(&mesh.area_km).filter(|km| *km > 0.0 && *km < 20_000.0);
    let area_km = area_km.ok_or_else(|| bad("area_km", "area_km is out of range".into(), "kilometres above 0"))?;
    // More nodes have more room: as many of them are near each other as before.
    let area_km = area_km * grown.sqrt();
    let center: Option<Vec<f64>> = mesh.center.as_array().and_then(|list| list.iter().map(number).collect());
    let center =
        GeoPoint::try_from(center.unwrap_or_default().as_slice()).map_err(|why| bad("center", why, "[lat, lon]"))?;
    let mut all: Vec<Blueprint> = Vec::new();
    let mut above: Vec<GeoPoint> = Vec::new();
    let lowest = counts.iter().position(|&count| count > 0);
    let mut depth = 0;
    for level in (0..counts.len()).rev() {
        let count = counts[level];
        if count == 0 {
            continue;
        }
        let radius = area_km * 1000.0 / 2.0 / 2f64.powi(depth);
        let mut here = Vec::new();
        for i in 0..count {
            let around = if above.is_empty() { center } else { above[i % above.len()] };
            let siblings = if above.is_empty() { count } else { count.div_ceil(above.len()) };
            let turn = if above.is_empty() { i } else { i / above.len() };
            let position = if above.is_empty() && count == 1 {
                center
            } else if Some(level) == lowest {
                let (distance, angle): (f64, f64) = (rng.random_range(0.0..1.0), rng.random_range(0.0..1.0));
                around.offset(radius * distance.sqrt(), angle * std::f64::consts::TAU)
            } else {
                around.offset(radius, turn as f64 / siblings as f64 * std::f64::consts::TAU)
            };
            here.push(position);
            let label = levels.label(Level(level as u8));
            let name = NodeName::new(&format!("{}-{i}", label.replace('_', "-"))).map_err(|error| {
                bad("settings", format!("a level's label does not make a name: {error}"), "choose a shorter label")
            })?;
            let mut config = base.clone();
            config.node.level = label;
            config.node.position = Some(position);
            all.push(Blueprint { id: id_of(&name), name, config, disk: true, condition: Condition::Nominal });
        }
        above = here;
        depth += 1;
    }
    Ok(all)
}

/// Scales the counts in proportion to `nodes` in all; a level that is present keeps at least one.
fn scale(counts: &mut [usize], nodes: usize) {
    let total: usize = counts.iter().sum();
    let Some(lowest) = counts.iter().position(|&count| count > 0) else { return };
    let factor = nodes as f64 / total as f64;
    for count in counts.iter_mut().filter(|count| **count > 0) {
        *count = ((*count as f64 * factor).round() as usize).max(1);
    }
    let others: usize = counts.iter().enumerate().filter(|(i, _)| *i != lowest).map(|(_, count)| count).sum();
    counts[lowest] = nodes.saturating_sub(others).max(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_scale_in_proportion() {
        let mut counts = [89, 8, 2, 1];
        scale(&mut counts, 1000);
        assert_eq!(counts.iter().sum::<usize>(), 1000);
        assert_eq!(counts[1..], [80, 20, 10]);
    }
}
