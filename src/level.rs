//! Levels of the hierarchy and their labels.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A level: an ordinal, 0 at the bottom. Its label is configuration ([`Levels`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8")]
pub struct Level(pub u8);

/// A level from outside that no node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no level: the highest is 7, and 9 for who acts above it")]
pub struct ImpossibleLevel(u8);

impl TryFrom<u8> for Level {
    type Error = ImpossibleLevel;

    fn try_from(level: u8) -> Result<Self, ImpossibleLevel> {
        match level <= Self::HIGHEST.0 + Self::ABOVE_TOP {
            true => Ok(Self(level)),
            false => Err(ImpossibleLevel(level)),
        }
    }
}

impl Level {
    pub const PLATFORM: Self = Self(0);
    pub const SQUAD: Self = Self(1);
    pub const PLATOON: Self = Self(2);
    pub const COMPANY: Self = Self(3);
    /// The highest ordinal a configuration may name (eight levels).
    pub const HIGHEST: Self = Self(7);
    /// How far above the top label a node may act: two levels give one root to as many nodes of the top level as the
    /// square of their slots, with 16 each to meshes of some ten thousand nodes and more.
    pub const ABOVE_TOP: u8 = 2;
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The labels of a mesh's levels, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Levels(Vec<String>);

impl Default for Levels {
    fn default() -> Self {
        Self(["platform", "squad", "platoon", "company"].map(str::to_owned).to_vec())
    }
}

/// Why a list of labels is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLevels {
    #[error("a mesh has 2 to 8 levels, these are {0}")]
    Count(usize),
    #[error("`{0}` is not a level label: a lower-case letter, then letters, digits and underscores")]
    Label(String),
    #[error("the level `{0}` is named twice")]
    Twice(String),
}

impl Levels {
    pub fn new(labels: Vec<String>) -> Result<Self, InvalidLevels> {
        if !(2..=8).contains(&labels.len()) {
            return Err(InvalidLevels::Count(labels.len()));
        }
        for (i, label) in labels.iter().enumerate() {
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !label.starts_with(|c: char| c.is_ascii_lowercase()) || !label.chars().all(word) || label.len() > 32 {
                return Err(InvalidLevels::Label(label.chars().take(64).collect()));
            }
            if labels[..i].contains(label) {
                return Err(InvalidLevels::Twice(label.clone()));
            }
        }
        Ok(Self(labels))
    }

    /// The level of a label, read case-insensitively.
    pub fn parse(&self, label: &str) -> Option<Level> {
        let index = self.0.iter().position(|known| known.eq_ignore_ascii_case(label))?;
        Some(Level(index as u8))
    }

    /// The label of a level. Those above the top, which an acting parent may reach, are `above_` and `far_above_` the
    /// top's.
    pub fn label(&self, level: Level) -> String {
        let Level(top) = self.top();
        match self.0.get(level.0 as usize) {
            Some(label) => label.clone(),
            None if level.0 == top + 1 => format!("above_{}", self.0[top as usize]),
            None => format!("far_above_{}", self.0[top as usize]),
        }
    }

    pub fn top(&self) -> Level {
        Level((self.0.len() - 1) as u8)
    }

    pub fn labels(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = Vec::<String>::deserialize(deserializer)?;
        Self::new(labels).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_level_from_outside_is_above_those_that_act_above_the_highest() {
        let read = |level: u8| crate::codec::decode::<Level>(&[level]).ok();
        assert_eq!((read(0), read(9), read(10), read(250)), (Some(Level(0)), Some(Level(9)), None, None));
    }

    #[test]
    fn labels_and_levels_are_inverse() {
        let levels = Levels::default();
        for (i, label) in levels.labels().iter().enumerate() {
            assert_eq!(levels.parse(&label.to_uppercase()), Some(Level(i as u8)));
            assert_eq!(&levels.label(Level(i as u8)), label);
        }
        assert_eq!(
            (levels.label(Level(4)), levels.label(Level(5))),
            ("above_company".into(), "far_above_company".into())
        );
        assert_eq!(levels.parse("brigade"), None);
    }

    #[test]
    fn nonsense_labels_are_refused() {
        let labels = |list: &[&str]| Levels::new(list.iter().map(|s| s.to_string()).collect());
        assert_eq!(labels(&["one"]), Err(InvalidLevels::Count(1)));
        assert_eq!(labels(&["a", "B"]), Err(InvalidLevels::Label("B".into())));
        assert_eq!(labels(&["a", "a"]), Err(InvalidLevels::Twice("a".into())));
    }
}
