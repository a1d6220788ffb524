//! Reads `sluicegate.toml`, `conf.d/*.toml` and the environment into one tree, and finds every error with its place.
//!
//! Precedence: environment `SLUICEGATE_SECTION_KEY` over `conf.d` (last name wins) over the main file. Tables are merged
//! key by key, lists (`[[adapter]]`, `[[device]]`, …) are joined.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::{Place, Places, Problem, Problems};
use super::{
    Adapter, Admin, Alarm, Broker, Config, Credential, Device, Gateway, Hls, Hooks, Pull, Record, Relay, Rule, Shadow,
    Store, Stream, Upstream, Webrtc,
};

/// Bytes of one file: a configuration is not data.
const FILE_LEN_MAX: u64 = 1024 * 1024;
/// Errors looked for in one table before it is given up.
const TABLE_ERRORS_MAX: usize = 64;
/// Files in `conf.d`.
const FILES_MAX: usize = 256;

const TABLES: &[&str] = &["gateway", "store", "shadow", "admin", "broker", "stream", "webrtc", "hls", "hooks"];
const LISTS: &[&str] = &["adapter", "device", "credential", "upstream", "relay", "pull", "record", "rule", "alarm"];

/// A configuration and where each of its keys stands.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    pub config: Config,
    pub places: Places,
}

/// Loads a file and the `conf.d` beside it.
pub fn load(file: &Path) -> Result<Loaded, Problems> {
    let mut reader = Reader::default();
    reader.file(file);
    if let Some(folder) = file.parent().map(|p| p.join("conf.d")).filter(|p| p.is_dir()) {
        reader.folder(&folder);
    }
    reader.environment(std::env::vars());
    reader.finish()
}

/// Loads a text that stands in no file (the demo's), under a name for its errors.
pub fn load_text(name: &str, text: &str) -> Result<Loaded, Problems> {
    let mut reader = Reader::default();
    reader.text(Arc::new(PathBuf::from(name)), text);
    reader.finish()
}

#[derive(Default)]
struct Reader {
    merged: toml::Table,
    places: Places,
    problems: Vec<Problem>,
}

impl Reader {
    fn folder(&mut self, folder: &Path) {
        let listed = match std::fs::read_dir(folder) {
            Ok(listed) => listed,
            Err(error) => return self.unreadable(folder, &error.to_string()),
        };
        let mut files: Vec<PathBuf> = listed
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .collect();
        files.sort();
        if files.len() > FILES_MAX {
            return self.unreadable(folder, &format!("more than {FILES_MAX} files"));
        }
        for file in files {
            self.file(&file);
        }
    }

    fn file(&mut self, file: &Path) {
        let len = std::fs::metadata(file).map_or(0, |m| m.len());
        if len > FILE_LEN_MAX {
            return self.unreadable(file, &format!("{len} bytes; at most {FILE_LEN_MAX} are read"));
        }
        match std::fs::read_to_string(file) {
            Ok(text) => self.text(Arc::new(file.to_owned()), &text),
            Err(error) => self.unreadable(file, &error.to_string()),
        }
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        let what = format!("{}: cannot be read: {why}", path.display());
        self.problems.push(Problem { place: None, key: String::new(), what });
    }

    fn text(&mut self, file: Arc<PathBuf>, text: &str) {
        let source = Source { file, text };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            self.problems.push(source.problem("", error.span(), error.message()));
        }
        if !errors.is_empty() {
            return;
        }
        for (key, value) in document.into_inner() {
            let (at, key) = (key.span(), key.into_inner());
            if TABLES.contains(&&*key) {
                self.note(&source, &key, at, &value);
                self.table(&source, &key, &key, value);
            } else if LISTS.contains(&&*key) {
                self.list(&source, &key, at, value);
            } else {
                let known = TABLES.iter().chain(LISTS).copied().collect::<Vec<_>>().join(", ");
                let what = format!("there is no such section; there are {known}");
                self.problems.push(source.problem(&key, Some(at), &what));
            }
        }
        match toml::from_str::<toml::Table>(text) {
            Ok(table) => merge(&mut self.merged, table),
            Err(error) => self.problems.push(source.problem("", error.span(), error.message())),
        }
    }

    fn list(&mut self, source: &Source<'_>, key: &str, at: Range<usize>, value: Spanned<DeValue<'_>>) {
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            let what = format!("this is a list: write [[{key}]]");
            return self.problems.push(source.problem(key, Some(at), &what));
        };
        let before = self.merged.get(key).and_then(|v| v.as_array()).map_or(0, Vec::len);
        for (offset, item) in items.into_iter().enumerate() {
            let path = format!("{key}[{}]", before + offset);
            let header = if item.span().is_empty() { span.clone() } else { item.span() };
            self.note(source, &path, header, &item);
            self.table(source, key, &path, item);
        }
    }

    /// Remembers where a table and its keys stand.
    fn note(&mut self, source: &Source<'_>, path: &str, at: Range<usize>, value: &Spanned<DeValue<'_>>) {
        self.places.note(path.to_owned(), source.place(&at));
        if let DeValue::Table(table) = value.get_ref() {
            for (key, value) in table {
                self.places.note(format!("{path}.{}", key.get_ref()), source.place(&key.span()));
                if let DeValue::Table(inner) = value.get_ref() {
                    for key in inner.keys() {
                        let path = format!("{path}.options.{}", key.get_ref());
                        self.places.note(path, source.place(&key.span()));
                    }
                }
            }
        }
    }

    fn table(&mut self, source: &Source<'_>, section: &str, path: &str, value: Spanned<DeValue<'_>>) {
        let found = match section {
            "gateway" => errors::<Gateway>(value),
            "store" => errors::<Store>(value),
            "shadow" => errors::<Shadow>(value),
            "admin" => errors::<Admin>(value),
            "broker" => errors::<Broker>(value),
            "stream" => errors::<Stream>(value),
            "webrtc" => errors::<Webrtc>(value),
            "hls" => errors::<Hls>(value),
            "hooks" => errors::<Hooks>(value),
            "adapter" => errors::<Adapter>(value),
            "device" => errors::<Device>(value),
            "credential" => errors::<Credential>(value),
            "upstream" => errors::<Upstream>(value),
            "pull" => errors::<Pull>(value),
            "rule" => errors::<Rule>(value),
            "alarm" => errors::<Alarm>(value),
            "record" => errors::<Record>(value),
            _ => errors::<Relay>(value),
        };
        for Found { key, span, what } in found {
            let path = key.map_or_else(|| path.to_owned(), |key| format!("{path}.{key}"));
            self.problems.push(source.problem(&path, span, &what));
        }
    }

    fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("SLUICEGATE_") else { continue };
            let Some((section, key)) = rest.split_once('_') else { continue };
            let (section, key) = (section.to_lowercase(), key.to_lowercase());
            if !TABLES.contains(&section.as_str()) {
                continue;
            }
            let value = toml::from_str::<toml::Table>(&format!("v = {text}"))
                .ok()
                .and_then(|mut t| t.remove("v"))
                .unwrap_or(toml::Value::String(text));
            let mut one = toml::Table::new();
            one.insert(key, value);
            let mut overlay = toml::Table::new();
            overlay.insert(section, toml::Value::Table(one));
            if let Err(error) = overlay.clone().try_into::<Config>() {
                let what = format!("the environment's {name}: {}", error.message());
                self.problems.push(Problem { place: None, key: String::new(), what });
            } else {
                merge(&mut self.merged, overlay);
            }
        }
    }

    fn finish(mut self) -> Result<Loaded, Problems> {
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|p| p.place.as_ref().map(|p| (Arc::clone(&p.file), p.line)));
            return Err(Problems(self.problems));
        }
        match self.merged.try_into() {
            Ok(config) => Ok(Loaded { config, places: self.places }),
            Err(error) => {
                let what = error.message().to_owned();
                self.problems.push(Problem { place: None, key: String::new(), what });
                Err(Problems(self.problems))
            }
        }
    }
}

/// A file's text, to turn offsets into lines.
struct Source<'t> {
    file: Arc<PathBuf>,
    text: &'t str,
}

impl Source<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        Place { file: Arc::clone(&self.file), line: 1 + before.matches('\n').count() }
    }

    fn problem(&self, key: &str, span: Option<Range<usize>>, what: &str) -> Problem {
        Problem { place: span.map(|s| self.place(&s)), key: key.to_owned(), what: what.trim().replace('\n', "; ") }
    }
}

struct Found {
    key: Option<String>,
    span: Option<Range<usize>>,
    what: String,
}

/// All errors of a table, not only the first: the key that is wrong is taken out and the rest looked at again.
fn errors<T: DeserializeOwned>(mut value: Spanned<DeValue<'_>>) -> Vec<Found> {
    let mut found = Vec::new();
    let mut removed: Vec<String> = Vec::new();
    while found.len() < TABLE_ERRORS_MAX {
        let Err(error) = T::deserialize(ValueDeserializer::from(value.clone())) else { break };
        let what = error.message().to_owned();
        // A required key that was taken out for another error is not missing: a text stands in for it.
        if let Some(at) = removed.iter().position(|key| what == format!("missing field `{key}`")) {
            put_text(&mut value, removed.swap_remove(at));
            continue;
        }
        let guilty = error.span().and_then(|span| take_key(&mut value, &span));
        let stop = guilty.is_none();
        removed.extend(guilty.clone());
        found.push(Found { key: guilty, span: error.span(), what });
        if stop {
            break;
        }
    }
    found
}

/// Takes the key out of the table that stands at, or has its value at, these bytes.
fn take_key(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    let DeValue::Table(table) = value.get_mut() else { return None };
    let inside = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let guilty = table.iter().find(|(key, value)| inside(key.span()) || inside(value.span()))?.0.clone();
    table.remove(&guilty);
    Some(guilty.into_inner().into_owned())
}

/// All required keys are texts.
fn put_text(value: &mut Spanned<DeValue<'_>>, key: String) {
    if let DeValue::Table(table) = value.get_mut() {
        table.insert(Spanned::new(0..0, key.into()), Spanned::new(0..0, DeValue::String("?".into())));
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => {
                for (key, value) in new {
                    old.insert(key, value);
                }
            }
            (Some(toml::Value::Array(old)), toml::Value::Array(new)) => old.extend(new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_at_once_each_with_its_line_and_key() {
        let text =
            "[store]\ncommit_ms = \"soon\"\ncap = 3\n\n[nowhere]\n\n[[adapter]]\nname = 7\nlisten = \"tcp://[::]:1\"\n";
        let problems = load_text("box.toml", text).unwrap_err();
        let lines: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        let all = lines.join("\n");
        assert!(lines.iter().any(|l| l.starts_with("box.toml:2: store.commit_ms:") && l.contains("u64")), "{all}");
        assert!(lines.iter().any(|l| l.starts_with("box.toml:3: store.cap: unknown field")), "{all}");
        assert!(lines.iter().any(|l| l.starts_with("box.toml:5: nowhere: there is no such section")), "{all}");
        assert!(lines.iter().any(|l| l.starts_with("box.toml:8: adapter[0].name:")), "{all}");
        assert!(lines.iter().any(|l| l.contains("missing field `protocol`")), "{all}");
    }

    #[test]
    fn broken_toml_names_the_line() {
        let problems = load_text("box.toml", "[store]\npath = \n").unwrap_err().to_string();
        assert!(problems.starts_with("box.toml:2:"), "{problems}");
    }

    #[test]
    fn files_are_merged_and_the_environment_wins() {
        let mut reader = Reader::default();
        let device = "[[device]]\nid = \"a\"\nproduct = \"p\"\n";
        reader.text(Arc::new(PathBuf::from("a")), &format!("[store]\ncommit_ms = 10\ncap_mib = 9\n{device}"));
        reader.text(Arc::new(PathBuf::from("b")), &format!("[store]\ncap_mib = 10\n{device}"));
        let variables =
            [("SLUICEGATE_STORE_CAP_MIB", "11"), ("SLUICEGATE_GATEWAY_ID", "box-1"), ("SLUICEGATE_KEY", "x")];
        reader.environment(variables.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())));
        let loaded = reader.finish().unwrap();
        assert_eq!((loaded.config.store.commit_ms, loaded.config.store.cap_mib), (10, 11));
        assert_eq!(loaded.config.gateway.id, "box-1");
        assert_eq!(loaded.config.devices.len(), 2);
        assert_eq!(loaded.places.of("device[1].id").unwrap().line, 4);
    }

    #[test]
    fn an_environment_variable_that_fits_nothing_is_named() {
        let mut reader = Reader::default();
        reader.environment([("SLUICEGATE_STORE_CAPS".to_owned(), "1".to_owned())].into_iter());
        assert!(reader.finish().unwrap_err().to_string().contains("SLUICEGATE_STORE_CAPS"));
    }
}
