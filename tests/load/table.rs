//! Rows of figures, for the eye or as JSON.

use std::fmt;

use serde_json::{Map, Value};

/// A table with the conditions it was measured under.
#[derive(Debug)]
pub(crate) struct Table {
    notes: Vec<String>,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One figure or word.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Text(String),
    /// A figure and how many decimals of it mean something.
    Figure(f64, usize),
    None,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { notes: vec![machine()], columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a note that must not be overlooked, and says it.
    pub(crate) fn warn(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// Adds a row, and says it: the table comes after minutes, and who waits wants to see that it goes on.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        let said = self.columns.iter().zip(&cells).filter(|(column, _)| !column.is_empty());
        eprintln!("{}", said.map(|(column, cell)| format!("{column}: {cell}")).collect::<Vec<_>>().join(", "));
        self.rows.push(cells);
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), cell.json()));
            Value::Object(cells.collect::<Map<_, _>>())
        });
        serde_json::json!({ "measured_on": self.notes, "rows": rows.collect::<Vec<_>>() })
    }
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A figure that may not have been measured.
    pub(crate) fn maybe(value: Option<f64>, decimals: usize) -> Self {
        value.map_or(Self::None, |value| Self::Figure(value, decimals))
    }

    /// Whether a figure keeps its bar.
    pub(crate) fn at_most(value: f64, bar: f64) -> Self {
        Self::text(if value <= bar { "met" } else { "missed" })
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(text.as_str()),
            Self::Figure(value, decimals) => {
                let scale = 10_f64.powi(*decimals as i32);
                Value::from((value * scale).round() / scale)
            }
            Self::None => Value::Null,
        }
    }
}

// === impl Display ===

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Figure(value, decimals) => write!(f, "{value:.decimals$}"),
            Self::None => f.write_str("-"),
        }
    }
}

impl fmt::Display for Table {
    /// Markdown, so that a run can be kept as it was printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        writeln!(f, "\n| {} |", self.columns.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.columns.len()))?;
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(ToString::to_string).collect();
            writeln!(f, "| {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}

/// What it runs on.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "{} {cpus} CPUs {model}, loopback, client on the same cores, load average before: {load}",
        std::env::consts::ARCH
    )
}
