//! One JSON object being read: typed access to its terms, and a flaw for every term that is wrong or unknown.

use std::fmt;

use super::json::Json;

/// One thing wrong in a model file: where (RFC 6901 pointer), what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub pointer: String,
    pub problem: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pointer = if self.pointer.is_empty() { "/" } else { &self.pointer };
        write!(f, "{pointer}: {}", self.problem)
    }
}

/// The flaws found so far. Told all at once, up to a limit that still fits a screen.
#[derive(Debug, Default)]
pub(super) struct Flaws {
    pub(super) list: Vec<Flaw>,
}

/// More flaws than this help nobody.
const FLAWS_MAX: usize = 100;

impl Flaws {
    pub(super) fn add(&mut self, pointer: &str, problem: impl Into<String>) {
        if self.list.len() < FLAWS_MAX {
            self.list.push(Flaw { pointer: pointer.to_owned(), problem: problem.into() });
        }
    }
}

/// An object with its place, and which of its terms have been looked at.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) pointer: String,
    entries: &'a [(String, Json)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// `None` (and a flaw) when the JSON is no object. A key said twice is a flaw too.
    pub(super) fn open(json: &'a Json, pointer: String, flaws: &mut Flaws) -> Option<Self> {
        let Json::Object(entries) = json else {
            flaws.add(&pointer, format!("must be an object, not {}", json.kind()));
            return None;
        };
        for (index, (key, _)) in entries.iter().enumerate() {
            if entries.iter().take(index).any(|(earlier, _)| earlier == key) {
                flaws.add(&join(&pointer, key), "is said twice; keep one");
            }
        }
        Some(Self { pointer, entries, known: Vec::new() })
    }

    /// Every entry in order, for objects whose keys are names.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Json, String)> + use<'a> {
        let pointer = self.pointer.clone();
        self.entries.iter().map(move |(key, json)| (key.as_str(), json, join(&pointer, key)))
    }

    pub(super) fn at(&self, key: &str) -> String {
        join(&self.pointer, key)
    }

    /// The term's value; from now on the term is known here.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Json> {
        self.known.push(key);
        self.entries.iter().find(|(k, _)| k == key).map(|(_, json)| json)
    }

    pub(super) fn text(&mut self, key: &'static str, flaws: &mut Flaws) -> Option<&'a str> {
        match self.get(key)? {
            Json::Text(text) => Some(text),
            other => {
                flaws.add(&self.at(key), format!("must be a text, not {}", other.kind()));
                None
            }
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, flaws: &mut Flaws) -> bool {
        match self.get(key) {
            None => false,
            Some(Json::Bool(flag)) => *flag,
            Some(other) => {
                flaws.add(&self.at(key), format!("must be true or false, not {}", other.kind()));
                false
            }
        }
    }

    pub(super) fn number(&mut self, key: &'static str, flaws: &mut Flaws) -> Option<&'a serde_json::Number> {
        match self.get(key)? {
            Json::Number(number) => Some(number),
            other => {
                flaws.add(&self.at(key), format!("must be a number, not {}", other.kind()));
                None
            }
        }
    }

    pub(super) fn float(&mut self, key: &'static str, flaws: &mut Flaws) -> Option<f64> {
        self.number(key, flaws)?.as_f64()
    }

    pub(super) fn count(&mut self, key: &'static str, flaws: &mut Flaws) -> Option<u32> {
        let number = self.number(key, flaws)?;
        let count = number.as_u64().and_then(|n| u32::try_from(n).ok());
        if count.is_none() {
            flaws.add(&self.at(key), format!("must be a whole number from 0 to {}, not {number}", u32::MAX));
        }
        count
    }

    pub(super) fn array(&mut self, key: &'static str, flaws: &mut Flaws) -> Option<&'a [Json]> {
        match self.get(key)? {
            Json::Array(items) => Some(items),
            other => {
                flaws.add(&self.at(key), format!("must be an array, not {}", other.kind()));
                None
            }
        }
    }

    /// Refuses every term that nobody asked for and that is not in `ignored` (terms of WoT that say nothing to a
    /// gateway). Terms of other people's prefixes pass: WoT allows them, and they mean nothing here.
    pub(super) fn finish(&self, ignored: &[&'static str], flaws: &mut Flaws) {
        for (key, _) in self.entries {
            if self.known.contains(&key.as_str()) || ignored.contains(&key.as_str()) {
                continue;
            }
            let pointer = join(&self.pointer, key);
            if key.starts_with("sg:") {
                flaws.add(&pointer, format!("no such term here; {}", self.ours()));
            } else if key.starts_with("tm:") {
                flaws.add(&pointer, "is not supported: write the model out in full");
            } else if !key.contains(':') {
                let mut terms = [&self.known, ignored].concat();
                terms.sort_unstable();
                flaws.add(&pointer, format!("is no term of Thing Model 1.1 here; the terms are {}", terms.join(", ")));
            }
        }
    }

    fn ours(&self) -> String {
        let mut ours: Vec<&str> = self.known.iter().copied().filter(|key| key.starts_with("sg:")).collect();
        ours.sort_unstable();
        if ours.is_empty() {
            "there are no `sg:` terms here".to_owned()
        } else {
            format!("there are {}", ours.join(", "))
        }
    }
}

/// A pointer one level deeper (RFC 6901, clause 3: `~` and `/` are escaped).
pub(super) fn join(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}
