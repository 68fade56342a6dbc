//! Whom a fault or a command concerns, resolved when it begins.

use rand::RngExt;
use rand_pcg::Pcg32;
use serde::Deserialize;

use crate::config::nearest;
use crate::proto::election::Role;
use crate::sim::node::SimNode;

/// A target as a scenario writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum TargetSpec {
    Name(String),
    /// `LEVEL:INDEX`
    Indexed(String, usize),
    LeaderOf(String),
    ParentOf(String),
    Under(Box<TargetSpec>),
    Level(String),
    Random(f64),
    Everyone,
}

impl TryFrom<String> for TargetSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "everyone" || text == "*" {
            return Ok(Self::Everyone);
        }
        let Some((kind, rest)) = text.split_once(':') else { return Ok(Self::Name(text)) };
        let rest = rest.to_owned();
        match kind {
            "leader" => Ok(Self::LeaderOf(rest)),
            "parent-of" => Ok(Self::ParentOf(rest)),
            "under" => Ok(Self::Under(Box::new(rest.try_into()?))),
            "level" => Ok(Self::Level(rest)),
            "random" => {
                let percent = rest.strip_suffix('%').and_then(|n| n.parse::<f64>().ok());
                let percent = percent.filter(|p| (0.0..=100.0).contains(p));
                percent.map(Self::Random).ok_or_else(|| format!("`{text}` is no share; write it as random:10%"))
            }
            level => {
                let index = rest.parse().map_err(|_| format!("`{text}` is no target; write it as LEVEL:INDEX"))?;
                Ok(Self::Indexed(level.to_owned(), index))
            }
        }
    }
}

impl TargetSpec {
    /// Whether it names something that can exist among these nodes; else why not, and what was meant.
    pub fn check(&self, nodes: &[SimNode], labels: &[String]) -> Result<(), (String, String)> {
        let level_exists = |level: &String| match labels.contains(level) {
            true => Ok(()),
            false => Err((format!("`{level}` is not a level"), format!("use one of: {}", labels.join(", ")))),
        };
        let name_exists = |name: &String| match nodes.iter().any(|node| node.name.as_str() == name) {
            true => Ok(()),
            false => {
                let near = nearest(name, nodes.iter().map(|node| node.name.as_str()));
                let fix = near.map_or("name one of the nodes".into(), |near| format!("did you mean `{near}`?"));
                Err((format!("there is no node `{name}`"), fix))
            }
        };
        match self {
            Self::Name(name) if labels.contains(name) => Ok(()),
            Self::Name(name) | Self::ParentOf(name) => name_exists(name),
            Self::Indexed(level, index) => {
                level_exists(level)?;
                name_exists(&format!("{level}-{index}"))
            }
            Self::LeaderOf(level) | Self::Level(level) => level_exists(level),
            Self::Under(inner) => inner.check(nodes, labels),
            Self::Random(_) | Self::Everyone => Ok(()),
        }
    }

    /// The nodes it means now, by index, sorted by name.
    pub fn resolve(&self, nodes: &[SimNode], labels: &[String], rng: &mut Pcg32) -> Vec<usize> {
        let named = |name: &str| nodes.iter().position(|node| node.name.as_str() == name);
        let all = || 0..nodes.len();
        let level_of = |label: &String| labels.iter().position(|known| known == label).unwrap_or(usize::MAX);
        let mut found: Vec<usize> = match self {
            // A link's ends may be named by level alone.
            Self::Name(name) if labels.contains(name) => {
                all().filter(|&i| usize::from(nodes[i].level.0) == level_of(name)).collect()
            }
            Self::Name(name) => named(name).into_iter().collect(),
            Self::Indexed(level, index) => named(&format!("{level}-{index}")).into_iter().collect(),
            Self::Everyone => all().collect(),
            Self::Level(label) => all().filter(|&i| usize::from(nodes[i].level.0) == level_of(label)).collect(),
            Self::LeaderOf(label) => all()
                .filter(|&i| usize::from(nodes[i].level.0) == level_of(label))
                .filter(|&i| nodes[i].view().is_some_and(|view| view.role == Role::Leader))
                .collect(),
            Self::ParentOf(name) => {
                let parent = named(name).and_then(|i| nodes[i].view()?.parent_id());
                parent.and_then(|id| nodes.iter().position(|node| node.id == id)).into_iter().collect()
            }
            Self::Under(inner) => {
                let mut below = inner.resolve(nodes, labels, rng);
                let mut at = 0;
                while at < below.len() {
                    let parent = nodes[below[at]].id;
                    let children = all().filter(|&i| nodes[i].view().and_then(|view| view.parent_id()) == Some(parent));
                    let children: Vec<_> = children.filter(|i| !below.contains(i)).collect();
                    below.extend(children);
                    at += 1;
                }
                below
            }
            Self::Random(percent) => {
                let mut live: Vec<_> = all().filter(|&i| nodes[i].is_up()).collect();
                live.sort_by(|&a, &b| nodes[a].name.cmp(&nodes[b].name));
                let most = (live.len() as f64 * percent / 100.0).ceil() as usize;
                (0..most).map(|_| live.swap_remove(rng.random_range(0..live.len()))).collect()
            }
        };
        found.sort_by(|&a, &b| nodes[a].name.cmp(&nodes[b].name));
        found.dedup();
        found
    }
}
