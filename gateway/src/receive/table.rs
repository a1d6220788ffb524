//! Messages as lines for people: a table whose columns grow with what they hold, or one JSON object a line.

use std::io::{self, Write};

use device_models::wire::{Catalog, time_text};
use device_models::{Body, Message, Quality, Value};
use serde_json::Value as Json;

use super::consumer::{Content, Delivered};

/// Characters of a value in the table; the rest is cut off.
const VALUE_CHARS_MAX: usize = 60;
/// A column stops growing here.
const WIDTH_MAX: usize = 40;

/// Writes lines.
#[derive(Debug)]
pub struct Table {
    json: bool,
    headed: bool,
    widths: [usize; 5],
}

impl Table {
    pub fn new(json: bool) -> Self {
        Self { json, headed: false, widths: [23, 5, 10, 12, 12] }
    }

    pub fn write(&mut self, out: &mut impl Write, delivered: &Delivered) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", delivered.json());
        }
        if !self.headed {
            self.headed = true;
            self.row(out, ["TIME", "CLASS", "SEQ", "THING", "WHAT"].map(str::to_owned), "VALUE")?;
        }
        let class = if delivered.hist { "hist" } else { delivered.class.topic() };
        for (time, thing, what, value) in lines(delivered) {
            let seq = delivered.seq.to_string();
            self.row(out, [time, class.to_owned(), seq, printable(&thing), printable(&what)], &printable(&value))?;
        }
        Ok(())
    }

    fn row(&mut self, out: &mut impl Write, cells: [String; 5], last: &str) -> io::Result<()> {
        for (cell, width) in cells.iter().zip(&mut self.widths) {
            *width = cell.chars().count().max(*width).min(WIDTH_MAX);
            write!(out, "{cell:<width$}  ", width = *width)?;
        }
        writeln!(out, "{last}")
    }
}

/// What comes from the network must not steer the terminal.
fn printable(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { '·' } else { c }).take(VALUE_CHARS_MAX).collect();
    if text.chars().count() > VALUE_CHARS_MAX {
        clean.push('…');
    }
    clean
}

/// Time, thing, what, value: one line a property.
fn lines(delivered: &Delivered) -> Vec<(String, String, String, String)> {
    match &delivered.content {
        Content::Native(message, catalog, _) => native(message, catalog),
        Content::Json(json) => from_json(json),
    }
}

fn native(message: &Message, catalog: &Catalog) -> Vec<(String, String, String, String)> {
    let time = short_time(&time_text(message.time_us));
    let line = |what: String, value: String| (time.clone(), message.thing.as_ref().to_owned(), what, value);
    match &message.body {
        Body::Properties(samples) => samples
            .iter()
            .map(|sample| {
                let unit = catalog.property(&message.model, sample.alias).map_or("", |known| known.unit.as_ref());
                let mut value = text(&sample.value);
                if !unit.is_empty() {
                    value = format!("{value} {unit}");
                }
                if sample.quality != Quality::Good {
                    value = format!("{value} ({:?})", sample.quality);
                }
                line(sample.name.as_ref().to_owned(), value)
            })
            .collect(),
        Body::Event { name, level, data, .. } => {
            vec![line(format!("event {name}"), format!("{level:?} {}", text(data)))]
        }
        Body::Reply { id, outcome: Ok(value) } => vec![line(format!("reply {id}"), text(value))],
        Body::Reply { id, outcome: Err(failure) } => vec![line(format!("reply {id}"), format!("failed: {failure}"))],
        Body::Presence { online, reason } => {
            let state = if *online { "online" } else { "offline" };
            vec![line(state.to_owned(), reason.clone())]
        }
        Body::Gap { class, first, last, reason } => {
            vec![line("gap".to_owned(), format!("{} {first} to {last}: {reason}", class.topic()))]
        }
    }
}

fn from_json(json: &Json) -> Vec<(String, String, String, String)> {
    let field = |name: &str| json.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let (time, thing) = (short_time(&field("time")), field("thing"));
    if let Some(Json::Object(properties)) = json.get("properties") {
        let line = |(name, value): (&String, &Json)| (time.clone(), thing.clone(), name.clone(), value.to_string());
        return properties.iter().map(line).collect();
    }
    let what = ["event", "reply", "presence", "gap"].into_iter().find(|what| json.get(what).is_some()).unwrap_or("?");
    let value = json.get(what).map(Json::to_string).unwrap_or_default();
    vec![(time, thing, what.to_owned(), value)]
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        other => Json::from(other).to_string(),
    }
}

/// `2026-03-01T08:15:00.250000Z` as `2026-03-01 08:15:00.250`.
fn short_time(time: &str) -> String {
    match (time.get(..10), time.get(11..23)) {
        (Some(day), Some(clock)) if time.len() == 27 => format!("{day} {clock}"),
        _ => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use device_models::wire::{Clock, PropertyName};
    use device_models::{Class, Sample};

    use super::*;

    #[test]
    fn a_report_reads_with_its_unit_and_cannot_steer_the_terminal() {
        let mut catalog = Catalog::new(1);
        let celsius = PropertyName { name: "temperature".into(), kind: "number".into(), unit: "°C".into() };
        catalog.add_property(&"sensor".into(), 1, celsius);
        let sample = |alias, name: &str, value, quality| Sample { alias, name: name.into(), value, quality };
        let message = Message {
            thing: "room\u{1b}[2J".into(),
            model: "sensor".into(),
            time_us: 1_772_352_900_250_000,
            received_us: 0,
            body: Body::Properties(vec![
                sample(1, "temperature", Value::Float(21.5), Quality::Good),
                sample(0, "odd", Value::Text("x".into()), Quality::UnknownProperty),
            ]),
        };
        let delivered = Delivered {
            gateway: "box".into(),
            epoch: 1,
            class: Class::Live,
            seq: 42,
            hist: false,
            content: Content::Native(message, Arc::new(catalog), Clock::Unknown),
        };
        let mut out = Vec::new();
        Table::new(false).write(&mut out, &delivered).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("2026-03-01 08:15:00.250  live   42"), "{}", lines[1]);
        assert!(lines[1].ends_with("temperature   21.5 °C"), "{}", lines[1]);
        assert!(lines[2].ends_with("x (UnknownProperty)"));
        assert!(!text.contains('\u{1b}'));
        let column = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
        assert_eq!(column(lines[0], "WHAT"), column(lines[2], "odd"));
    }
}
