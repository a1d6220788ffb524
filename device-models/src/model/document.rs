//! A `*.tm.json` file compiled into a [`Model`].
//!
//! Standard terms mean what WoT TM 1.1 says. Ours:
//!
//! | term | where | means |
//! |---|---|---|
//! | `sg:dataType` | any schema | exact type: bool, i8 i16 i32 i64 u8 u16 u32 u64, time-ms, f32 f64, string, bytes, enum, object, array |
//! | `sg:alias` | property | its stable number, 1 to 4096; without it the lowest free one, in the file's order. A model that changes keeps old numbers by saying them |
//! | `sg:name` | property, action, event | how devices spell it (a text or an array); the first is what is sent to a device. The name itself is always understood |
//! | `sg:scale`, `sg:offset` | number | the device sends raw numbers: value = raw × scale + offset |
//! | `sg:deadband` | number | changes smaller than this, in the property's unit, need not be reported |
//! | `sg:report` | property | how it is passed on: `deadband` or `deadbandPercent`, `intervalMin`, `intervalMax` (seconds), or `window` (seconds) with `take` (min, max, mean, last) |
//! | `sg:alarms` | property | an array: `event`, one of `above`, `below`, `equals`, `differs`, and `hysteresis`, `delay` (seconds), `level` |
//! | `sg:level` | event | info (default), warn, error, urgent |
//! | `sg:open` | the model | what the model does not list is good too |
//! | `sg:stream` | the model | its things have a live stream |

use std::collections::HashMap;
use std::sync::Arc;

use super::fields::{Fields, Flaws, join};
use super::json::Json;
use super::rules;
use super::schema::{self, ANNOTATIONS};
use super::shape::{Linear, Shape};
use super::{
    AFFORDANCES_MAX, ALIAS_MAX, Access, Action, CONTEXT_TD_1_1, Event, FILE_MAX, Model, ModelError, NAME_MAX, Property,
    Table, Titles,
};

const SUFFIX: &str = ".tm.json";

/// Terms of a Thing Model that speak of one deployment or to people; forms come from the gateway itself.
const THING_IGNORED: [&str; 12] = [
    "id",
    "description",
    "descriptions",
    "support",
    "created",
    "modified",
    "base",
    "forms",
    "security",
    "securityDefinitions",
    "schemaDefinitions",
    "profile",
];

pub(super) fn parse(file: &str, text: &str) -> Result<Model, ModelError> {
    let name = model_name(file)?;
    if text.len() > FILE_MAX {
        return Err(ModelError::TooLarge { file: file.to_owned(), bytes: text.len() });
    }
    let json: Json = serde_json::from_str(text).map_err(|error| ModelError::Syntax {
        file: file.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })?;
    let mut flaws = Flaws::default();
    let model = thing(name, &json, &mut flaws);
    match model {
        Some(model) if flaws.list.is_empty() => Ok(model),
        _ => Err(ModelError::Flawed { file: file.to_owned(), flaws: flaws.list }),
    }
}

fn model_name(file: &str) -> Result<Arc<str>, ModelError> {
    let base = file.rsplit('/').next().unwrap_or(file);
    let plain = |name: &&str| {
        (1..=NAME_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let name = base.strip_suffix(SUFFIX).filter(plain);
    name.map(Arc::from).ok_or_else(|| ModelError::FileName { file: file.to_owned() })
}

fn thing(name: Arc<str>, json: &Json, flaws: &mut Flaws) -> Option<Model> {
    let mut fields = Fields::open(json, String::new(), flaws)?;
    let context = fields.get("@context");
    if !context.is_some_and(|json| mentions(json, CONTEXT_TD_1_1)) {
        flaws.add("/@context", format!("must name {CONTEXT_TD_1_1}"));
    }
    let types = fields.get("@type");
    if !types.is_some_and(|json| mentions(json, "tm:ThingModel")) {
        flaws.add("/@type", "must be, or contain, tm:ThingModel");
    }
    if fields.get("title").is_none() {
        flaws.add("/title", "is missing: what is the product called?");
    }
    fields.get("tm:optional");
    let title = titles(&mut fields, flaws);
    let revision = revision(&mut fields, flaws);
    links(&mut fields, flaws);
    let open = fields.flag("sg:open", flaws);
    let stream = fields.flag("sg:stream", flaws);
    let properties = affordances(&mut fields, "properties", flaws, property);
    let actions = affordances(&mut fields, "actions", flaws, |head, fields, flaws| Some(action(head, fields, flaws)));
    let events = affordances(&mut fields, "events", flaws, |head, fields, flaws| Some(event(head, fields, flaws)));
    fields.finish(&THING_IGNORED, flaws);

    let (properties, by_alias) = number(properties, flaws);
    Some(Model {
        name,
        revision,
        title,
        open,
        stream,
        properties: table("/properties", properties, |p| (&p.name, &p.spellings), flaws),
        actions: table("/actions", actions, |a| (&a.name, &a.spellings), flaws),
        events: table("/events", events, |e| (&e.name, &e.spellings), flaws),
        by_alias,
    })
}

/// Whether a text, or an array with it, is this one.
fn mentions(json: &Json, wanted: &str) -> bool {
    match json {
        Json::Text(text) => text == wanted,
        Json::Array(items) => items.iter().any(|item| item.as_text() == Some(wanted)),
        _ => false,
    }
}

fn revision(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Arc<str> {
    let at = fields.at("version");
    let version = fields.get("version").and_then(|json| Fields::open(json, at, flaws));
    let Some(mut version) = version else { return Arc::from("") };
    let revision = version.text("model", flaws).unwrap_or_default();
    version.finish(&["instance"], flaws);
    Arc::from(revision)
}

/// Links are for people, all but the one that would change the model.
fn links(fields: &mut Fields<'_>, flaws: &mut Flaws) {
    for (index, link) in fields.array("links", flaws).unwrap_or_default().iter().enumerate() {
        let Json::Object(entries) = link else { continue };
        let extends = |(key, json): &(String, Json)| key == "rel" && json.as_text() == Some("tm:extends");
        if entries.iter().any(extends) {
            let pointer = join(&fields.at("links"), &index.to_string());
            flaws.add(&pointer, "tm:extends is not supported: write the model out in full");
        }
    }
}

fn titles(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Titles {
    let text = fields.text("title", flaws).unwrap_or_default().into();
    let at = fields.at("titles");
    let others = fields.get("titles").and_then(|json| Fields::open(json, at, flaws));
    let mut list = Vec::new();
    for (language, json, pointer) in others.iter().flat_map(Fields::entries) {
        match json.as_text() {
            Some(text) => list.push((language.into(), text.into())),
            None => flaws.add(&pointer, format!("must be a text, not {}", json.kind())),
        }
    }
    Titles { text, others: list.into() }
}

// === affordances ===

/// What all three kinds of affordance have, read already.
struct Head {
    name: Arc<str>,
    spellings: Box<[Box<str>]>,
    title: Titles,
}

/// Reads every entry of `properties`, `actions` or `events`.
fn affordances<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    flaws: &mut Flaws,
    read: fn(Head, &mut Fields<'_>, &mut Flaws) -> Option<T>,
) -> Vec<T> {
    let at = fields.at(key);
    let Some(object) = fields.get(key).and_then(|json| Fields::open(json, at.clone(), flaws)) else {
        return Vec::new();
    };
    if object.entries().count() > AFFORDANCES_MAX {
        flaws.add(&at, format!("has {} entries; the most is {AFFORDANCES_MAX}", object.entries().count()));
        return Vec::new();
    }
    let mut list = Vec::new();
    for (name, json, pointer) in object.entries() {
        plain_name(name, &pointer, flaws);
        let Some(mut entry) = Fields::open(json, pointer, flaws) else { continue };
        let spellings = spellings(&mut entry, name, flaws);
        let head = Head { name: name.into(), spellings, title: titles(&mut entry, flaws) };
        list.extend(read(head, &mut entry, flaws));
    }
    list
}

fn plain_name(name: &str, pointer: &str, flaws: &mut Flaws) {
    let bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '+' | '#');
    if name.is_empty() || name.len() > NAME_MAX || name.contains(bad) {
        flaws.add(pointer, format!("a name has 1 to {NAME_MAX} bytes, and no space, `/`, `+` or `#`"));
    }
}

fn spellings(fields: &mut Fields<'_>, name: &str, flaws: &mut Flaws) -> Box<[Box<str>]> {
    let list: Vec<Box<str>> = match fields.get("sg:name") {
        None => vec![name.into()],
        Some(Json::Text(text)) => vec![text.as_str().into()],
        Some(Json::Array(items)) => items.iter().filter_map(Json::as_text).map(Box::from).collect(),
        Some(_) => Vec::new(),
    };
    let whole = match fields.get("sg:name") {
        Some(Json::Array(items)) => list.len() == items.len(),
        _ => true,
    };
    if !whole || list.is_empty() || list.iter().any(|text| text.is_empty() || text.len() > NAME_MAX) {
        flaws.add(&fields.at("sg:name"), format!("must be a text or an array of texts, each of 1 to {NAME_MAX} bytes"));
    }
    list.into()
}

fn property(head: Head, fields: &mut Fields<'_>, flaws: &mut Flaws) -> Option<(Option<u32>, Property)> {
    let shape = schema::read(fields, 1, flaws);
    let alias = fields.count("sg:alias", flaws);
    if alias.is_some_and(|alias| !(1..=ALIAS_MAX).contains(&alias)) {
        flaws.add(&fields.at("sg:alias"), format!("must be from 1 to {ALIAS_MAX}"));
    }
    let access = match (fields.flag("readOnly", flaws), fields.flag("writeOnly", flaws)) {
        (false, false) => Access::ReadWrite,
        (true, false) => Access::ReadOnly,
        (false, true) => Access::WriteOnly,
        (true, true) => {
            flaws.add(&fields.at("writeOnly"), "contradicts `readOnly`; keep one, or neither");
            Access::ReadOnly
        }
    };
    let linear = linear(fields, flaws);
    let deadband = fields.float("sg:deadband", flaws);
    if deadband.is_some_and(|deadband| deadband < 0.0) {
        flaws.add(&fields.at("sg:deadband"), "must be 0 or more");
    }
    if shape.as_ref().is_some_and(|shape| !shape.is_number()) {
        for (term, said) in [("sg:scale", linear.is_some()), ("sg:deadband", deadband.is_some())] {
            if said {
                flaws.add(&fields.at(term), "is for types integer and number only");
            }
        }
    }
    let Head { name, spellings, title } = head;
    let rules = rules::read(fields, &name, shape.as_ref().is_some_and(Shape::is_number), flaws);
    fields.finish(&[&ANNOTATIONS[..], &["observable", "uriVariables", "forms"]].concat(), flaws);
    let shape = shape?;
    Some((alias, Property { alias: 0, name, spellings, title, shape, access, linear, deadband, rules }))
}

fn linear(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Option<Linear> {
    let scale = fields.float("sg:scale", flaws);
    let offset = fields.float("sg:offset", flaws);
    if scale.is_none() && offset.is_none() {
        return None;
    }
    let linear = Linear::new(scale.unwrap_or(1.0), offset.unwrap_or(0.0));
    if linear.is_none() {
        flaws.add(&fields.at("sg:scale"), "must not be 0");
    }
    linear
}

fn action(head: Head, fields: &mut Fields<'_>, flaws: &mut Flaws) -> Action {
    let input = part(fields, "input", flaws);
    let output = part(fields, "output", flaws);
    let ignored =
        ["@type", "description", "descriptions", "safe", "idempotent", "synchronous", "uriVariables", "forms"];
    fields.finish(&ignored, flaws);
    let Head { name, spellings, title } = head;
    Action { name, spellings, title, input, output }
}

fn event(head: Head, fields: &mut Fields<'_>, flaws: &mut Flaws) -> Event {
    let data = part(fields, "data", flaws);
    let level = rules::level(fields, "sg:level", flaws);
    let ignored = [
        "@type",
        "description",
        "descriptions",
        "subscription",
        "cancellation",
        "dataResponse",
        "uriVariables",
        "forms",
    ];
    fields.finish(&ignored, flaws);
    let Head { name, spellings, title } = head;
    Event { name, spellings, title, level, data }
}

fn part(fields: &mut Fields<'_>, key: &'static str, flaws: &mut Flaws) -> Option<Shape> {
    let at = fields.at(key);
    fields.get(key).and_then(|json| schema::alone(json, at, 1, flaws))
}

// === tables ===

/// Where the property of each alias is.
type ByAlias = Box<[Option<u16>]>;

/// Gives every property its alias: the one it says, or the lowest that is free.
fn number(said: Vec<(Option<u32>, Property)>, flaws: &mut Flaws) -> (Vec<Property>, ByAlias) {
    let mut taken: HashMap<u32, Arc<str>> = HashMap::new();
    for (alias, property) in &said {
        let Some(alias) = alias else { continue };
        if let Some(earlier) = taken.insert(*alias, property.name.clone()) {
            let pointer = join(&join("/properties", &property.name), "sg:alias");
            flaws.add(&pointer, format!("{alias} is the alias of `{earlier}` already"));
        }
    }
    let mut free = (1..=ALIAS_MAX).filter(|alias| !taken.contains_key(alias));
    let properties: Vec<Property> = said
        .into_iter()
        .map(|(alias, property)| Property { alias: alias.or_else(|| free.next()).unwrap_or(0), ..property })
        .collect();
    let last = properties.iter().map(|property| property.alias).max().unwrap_or(0).min(ALIAS_MAX);
    let mut by_alias = vec![None; last as usize + 1];
    for (index, property) in properties.iter().enumerate() {
        if let Some(slot) = by_alias.get_mut(property.alias as usize) {
            *slot = u16::try_from(index).ok();
        }
    }
    (properties, by_alias.into())
}

/// A name and its spellings.
type Names<'a> = (&'a Arc<str>, &'a [Box<str>]);

fn table<T>(pointer: &str, entries: Vec<T>, names: fn(&T) -> Names<'_>, flaws: &mut Flaws) -> Table<T> {
    let mut by_spelling: HashMap<Box<str>, u16> = HashMap::new();
    for (index, entry) in (0_u16..).zip(&entries) {
        by_spelling.insert((**names(entry).0).into(), index);
    }
    for (index, entry) in (0_u16..).zip(&entries) {
        let (name, spellings) = names(entry);
        for spelling in spellings {
            if by_spelling.insert(spelling.clone(), index).is_some_and(|earlier| earlier != index) {
                let pointer = join(&join(pointer, name), "sg:name");
                flaws.add(&pointer, format!("`{spelling}` means another one already"));
            }
        }
    }
    Table { entries: entries.into(), by_spelling }
}
