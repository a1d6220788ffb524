//! What is wrong in a configuration, and where.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<PathBuf>,
    /// From 1.
    pub line: usize,
}

/// One thing that is wrong: where, which key, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Absent for what no file said (an environment variable, a default).
    pub place: Option<Place>,
    /// `store.commit_ms`, `adapter[2].listen`.
    pub key: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { file, line }) = &self.place {
            write!(f, "{}:{line}: ", file.display())?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// Everything that is wrong, one a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Where each key stands, so that a later check can name its line.
#[derive(Debug, Clone, Default)]
pub struct Places {
    keys: HashMap<String, Place>,
}

impl Places {
    pub(super) fn note(&mut self, key: String, place: Place) {
        self.keys.insert(key, place);
    }

    /// The place of a key, or of the nearest table around it.
    pub fn of(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            if let Some(place) = self.keys.get(key) {
                return Some(place.clone());
            }
            key = key.rsplit_once('.')?.0;
        }
    }

    /// A problem with this key.
    pub fn problem(&self, key: impl Into<String>, what: impl Into<String>) -> Problem {
        let key = key.into();
        Problem { place: self.of(&key), key, what: what.into() }
    }
}
