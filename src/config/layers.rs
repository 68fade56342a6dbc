//! Defaults < file < environment < flags, each value remembered with where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::config::{Config, nearest};
use crate::limits::Limits;

/// A place in a file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

/// Something wrong with what a user gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    /// The file's place, if it came from one.
    pub place: Option<Place>,
    /// The flag or variable, if it came from one.
    pub origin: Option<String>,
    pub fix: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.origin) {
            (Some(Place { file, line, column }), _) => write!(f, "{}:{line}:{column}: ", file.display())?,
            (None, Some(origin)) => write!(f, "{origin}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.message)?;
        match &self.fix {
            Some(fix) => write!(f, " ({fix})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A file with its text, so that a key can be found in it.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    text: String,
}

/// Layers being laid over each other.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    file: Option<Source>,
    values: Table,
    /// Dotted key → the flag or variable that set it.
    origins: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Layers {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays a file over the defaults.
    pub fn file(mut self, path: &Path) -> Result<Self, Problems> {
        let text = read(path)?;
        self.values = toml::from_str(&text).map_err(|error| Problems(vec![syntax(path, &text, &error)]))?;
        self.file = Some(Source { path: path.to_owned(), text });
        Ok(self)
    }

    /// Lays the variables `TUSSOCK_SECTION_KEY` of known sections over it, and those of the tables within them.
    pub fn environment(mut self, variables: impl Iterator<Item = (String, String)>) -> Self {
        const SECTIONS: [&str; 9] =
            ["node", "formation", "discovery", "beacon", "topology", "failover", "telemetry", "partition", "transport"];
        const INNER: [&str; 4] = ["discovery.static", "failover.backoff", "topology.hybrid", "topology.weights"];
        for (variable, value) in variables {
            let Some(rest) = variable.strip_prefix("TUSSOCK_") else { continue };
            let rest = rest.to_lowercase();
            let Some((section, key)) = rest.split_once('_') else { continue };
            let inner = INNER.iter().find_map(|inner| {
                let key = rest.strip_prefix(&inner.replace('.', "_"))?.strip_prefix('_')?;
                Some(format!("{inner}.{key}"))
            });
            if let Some(key) = inner {
                self = self.set(&key, &value, format!("the variable {variable}"));
            } else if SECTIONS.contains(&section) {
                self = self.set(&format!("{section}.{key}"), &value, format!("the variable {variable}"));
            } else if let Some(near) = nearest(section, SECTIONS).filter(|near| strsim::levenshtein(near, section) <= 2)
            {
                let fix = format!("did you mean `TUSSOCK_{}_{}`?", near.to_uppercase(), key.to_uppercase());
                let message = format!("there is no section `{section}`");
                let origin = Some(format!("the variable {variable}"));
                self.problems.push(Problem { message, place: None, origin, fix: Some(fix) });
            }
        }
        self
    }

    /// Lays one value over it: `key` is dotted, `value` is TOML or a bare word.
    pub fn set(mut self, key: &str, value: &str, origin: String) -> Self {
        let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
        let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
        if insert(&mut self.values, key, value) {
            self.origins.insert(key.to_owned(), origin);
        } else {
            let message = format!("`{key}` is not a key");
            let fix = Some("write it as section.key, such as topology.max_children".into());
            self.problems.push(Problem { message, place: None, origin: Some(origin), fix });
        }
        self
    }

    /// The checked configuration, or everything that is wrong.
    pub fn build(mut self) -> Result<Config, Problems> {
        let mut problems = std::mem::take(&mut self.problems);
        let config: Config = self.read_values(&mut problems);
        for (key, message, fix) in config.problems() {
            let path: Vec<_> = key.split('.').map(str::to_owned).collect();
            problems.push(self.problem(&path, false, message, Some(fix)));
        }
        problems.sort_by_key(|problem| problem.place.as_ref().map(|place| (place.line, place.column)));
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// Reads what can be read; what cannot is reported and left out, so that all of it is reported at once.
    fn read_values<T: DeserializeOwned + Default>(&self, problems: &mut Vec<Problem>) -> T {
        let mut values = self.values.clone();
        for _ in 0..100 {
            match serde_path_to_error::deserialize::<_, T>(Value::Table(values.clone())) {
                Ok(read) => return read,
                Err(error) => {
                    let path: Vec<_> = error.path().iter().filter_map(segment).collect();
                    let message = in_plain_words(error.inner().message().trim());
                    let fix = suggestion(&message);
                    problems.push(self.problem(&path, message.starts_with("unknown field"), message, fix));
                    if !remove(&mut values, &path) {
                        return T::default();
                    }
                }
            }
        }
        T::default()
    }

    fn problem(&self, path: &[String], at_key: bool, message: String, fix: Option<String>) -> Problem {
        let key = path.join(".");
        let origin = self.origins.get(&key).cloned();
        let place = match (&origin, &self.file) {
            (None, Some(source)) => locate(source, path, at_key),
            _ => None,
        };
        let named = message.contains(&key) || origin.is_some();
        let message = if named { message } else { format!("{key}: {message}") };
        let origin = origin.or_else(|| place.is_none().then(|| key.clone()).filter(|key| !key.is_empty()));
        Problem { message, place, origin, fix }
    }
}

/// Reads a typed file as it stands, such as a scenario; the first problem is reported with its place.
pub fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, Problems> {
    let text = read(path)?;
    read_text(path, &text)
}

/// Reads typed text; `path` names it in problems.
pub fn read_text<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Problems> {
    let deserializer = toml::de::Deserializer::parse(text).map_err(|e| Problems(vec![syntax(path, text, &e)]))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let segments: Vec<_> = error.path().iter().filter_map(segment).collect();
        let message = in_plain_words(error.inner().message().trim());
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let place = match error.inner().span() {
            Some(span) => Some(place(path, text, span.start)),
            None => locate(&source, &segments, message.starts_with("unknown field")),
        };
        let fix = suggestion(&message);
        Problems(vec![Problem { message, place, origin: None, fix }])
    })
}

/// The place of a key in a file's text.
pub fn locate_key(path: &Path, text: &str, key: &[&str]) -> Option<Place> {
    let source = Source { path: path.to_owned(), text: text.to_owned() };
    let key: Vec<_> = key.iter().map(|segment| (*segment).to_owned()).collect();
    locate(&source, &key, false)
}

fn read(path: &Path) -> Result<String, Problems> {
    let problem = |message: String, fix: &str| {
        let origin = Some(path.display().to_string());
        Problems(vec![Problem { message, place: None, origin, fix: Some(fix.to_owned()) }])
    };
    let size = std::fs::metadata(path).map(|meta| meta.len());
    if size.is_ok_and(|size| size > Limits::CONFIG_BYTES) {
        return Err(problem(format!("the file is larger than {} bytes", Limits::CONFIG_BYTES), "name another file"));
    }
    std::fs::read_to_string(path)
        .map_err(|error| problem(format!("cannot be read: {error}"), "check the path and its permissions"))
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let place = error.span().map(|span| place(path, text, span.start));
    let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
    Problem { message, place, origin: None, fix: Some("correct the TOML here".into()) }
}

fn segment(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// What was expected, in TOML's words instead of Rust's.
fn in_plain_words(message: &str) -> String {
    let Some((wrong, expected)) = message.rsplit_once("expected ") else { return message.to_owned() };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "f32" | "f64" => "a number",
        expected if expected.starts_with("struct ") => "a table",
        expected => expected,
    };
    format!("{wrong}expected {expected}")
}

/// From "unknown field `x`, expected one of `a`, `b`" to what `x` was probably meant to be.
fn suggestion(message: &str) -> Option<String> {
    let mut words = message.split('`').skip(1).step_by(2);
    let wrong = words.next().filter(|_| message.starts_with("unknown"))?;
    let known: Vec<_> = words.collect();
    match nearest(wrong, &known) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None => Some(format!("known here: {}", known.join(", "))),
    }
}

fn insert(table: &mut Table, key: &str, value: Value) -> bool {
    let mut segments: Vec<_> = key.split('.').collect();
    let Some(last) = segments.pop().filter(|last| !last.is_empty()) else { return false };
    let mut at = table;
    for segment in segments {
        let entry = at.entry(segment).or_insert_with(|| Value::Table(Table::new()));
        match entry {
            Value::Table(inner) => at = inner,
            _ => return false,
        }
    }
    at.insert(last.to_owned(), value);
    true
}

fn remove(table: &mut Table, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return table.remove(first).is_some();
    }
    match table.get_mut(first) {
        Some(Value::Table(inner)) => remove(inner, rest) || table.remove(first).is_some(),
        // An entry of a list is wrong: leave the whole list out.
        Some(_) => table.remove(first).is_some(),
        None => false,
    }
}

fn locate(source: &Source, path: &[String], at_key: bool) -> Option<Place> {
    let document = DeTable::parse(&source.text).ok()?;
    let mut table = document.get_ref();
    let mut list = None;
    let mut found = None;
    for (i, segment) in path.iter().enumerate() {
        let (key_span, value) = match list.take() {
            Some(array) => {
                let array: &toml::de::DeArray<'_> = array;
                let value = array.get(segment.parse::<usize>().ok()?)?;
                (value.span(), value)
            }
            None => {
                let Some((key, value)) = table.get_key_value(segment.as_str()) else { break };
                (key.span(), value)
            }
        };
        let last = i + 1 == path.len();
        found = Some(if last && !at_key { value.span() } else { key_span });
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            DeValue::Array(inner) => list = Some(inner),
            _ => break,
        }
    }
    found.map(|span| place(&source.path, &source.text, span.start))
}

fn place(path: &Path, text: &str, at: usize) -> Place {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    Place { file: path.to_owned(), line, column }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str) -> Result<Config, Problems> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Layers::new().file(file.path())?.build()
    }

    fn places(problems: &Problems) -> Vec<(usize, usize)> {
        problems.0.iter().filter_map(|p| p.place.as_ref()).map(|p| (p.line, p.column)).collect()
    }

    #[test]
    fn all_errors_come_at_once_with_their_places() {
        let text = "[node]\nnaem = \"a\"\nlevel = \"sqad\"\n[beacon]\nttl = 30\n[topology]\nmax_children = 0\n";
        let problems = from_text(text).unwrap_err();
        assert_eq!(places(&problems), [(2, 1), (3, 9), (5, 7), (7, 16)], "{problems}");
        assert!(problems.to_string().contains("did you mean `name`?"));
        assert!(problems.to_string().contains("did you mean `squad`?"));
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let problems = from_text("[node]\nname = \n").unwrap_err();
        assert_eq!(places(&problems)[0].0, 2);
    }

    #[test]
    fn later_layers_win_and_are_blamed() {
        let variables = [("TUSSOCK_TOPOLOGY_MAX_CHILDREN", "4"), ("TUSSOCK_LOG", "x"), ("TUSSOCK_REQUIRE_X", "1")];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let layers = Layers::new().environment(variables.clone().into_iter());
        assert_eq!(layers.clone().build().unwrap().topology.max_children, 4);
        let layers = layers.set("topology.max_children", "lots", "--set topology.max_children".into());
        let problems = layers.build().unwrap_err();
        assert!(problems.to_string().starts_with("--set topology.max_children: "), "{problems}");
    }

    #[test]
    fn a_variable_reaches_the_tables_within_a_section() {
        let variable = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into_iter();
        let layers = Layers::new().environment(variable("TUSSOCK_FAILOVER_BACKOFF_INITIAL", "3s"));
        assert_eq!(layers.clone().build().unwrap().failover.backoff.initial, crate::config::Span::secs(3));
        let problems = layers.environment(variable("TUSSOCK_FAILOVER_BACKOFF_MAX", "2s")).build().unwrap_err();
        assert!(problems.to_string().starts_with("the variable TUSSOCK_FAILOVER_BACKOFF_INITIAL: 3s"), "{problems}");
    }

    #[test]
    fn a_wrong_type_is_told_in_the_words_of_the_file() {
        let problems = from_text("[failover]\nretries = -1\nbackoff = 3\n").unwrap_err().to_string();
        assert!(problems.contains("expected a whole number that is not negative"), "{problems}");
        assert!(problems.contains("expected a table"), "{problems}");
    }

    #[test]
    fn a_wrong_entry_in_a_list_is_found() {
        let text = "[[discovery.static.peers]]\nid = \"12\"\naddresses = []\n";
        let problems = from_text(text).unwrap_err();
        assert_eq!(places(&problems), [(2, 6)]);
    }
}
