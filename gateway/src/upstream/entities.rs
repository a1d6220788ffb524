//! A thing's entities in Home Assistant: which platform, unit and device class a property gets, and the retained
//! configurations that announce them.

use device_models::model::{Access, Action, Event, Kind, Model, Property, Range, Titles};
use serde_json::{Map, Value as Json, json};

use super::dialect::{Publication, Said, Scope, level};
use super::homeassistant::{gateway_availability, place};
use super::things::Known;

/// Home Assistant takes no finer step, and wants ends where a model has none.
const STEP_MIN: f64 = 0.001;
const NUMBER_MAX: f64 = 9_007_199_254_740_991.0;

/// Unit (UCUM) to Home Assistant's spelling and device class.
const UNITS: &[(&str, &str, Option<&str>)] = &[
    ("Cel", "°C", Some("temperature")),
    ("[degF]", "°F", Some("temperature")),
    ("K", "K", Some("temperature")),
    ("V", "V", Some("voltage")),
    ("mV", "mV", Some("voltage")),
    ("A", "A", Some("current")),
    ("mA", "mA", Some("current")),
    ("W", "W", Some("power")),
    ("kW", "kW", Some("power")),
    ("W.h", "Wh", Some("energy")),
    ("kW.h", "kWh", Some("energy")),
    ("Hz", "Hz", Some("frequency")),
    ("m", "m", Some("distance")),
    ("km", "km", Some("distance")),
    ("m/s", "m/s", Some("speed")),
    ("km/h", "km/h", Some("speed")),
    ("ms", "ms", Some("duration")),
    ("s", "s", Some("duration")),
    ("min", "min", Some("duration")),
    ("h", "h", Some("duration")),
    ("dB[mW]", "dBm", Some("signal_strength")),
    ("Pa", "Pa", Some("pressure")),
    ("hPa", "hPa", Some("pressure")),
    ("kPa", "kPa", Some("pressure")),
    ("bar", "bar", Some("pressure")),
    ("lx", "lx", Some("illuminance")),
    ("bit/s", "bit/s", Some("data_rate")),
    ("kg", "kg", Some("weight")),
    ("deg", "°", None),
    ("m3", "m³", None),
    ("[ppm]", "ppm", None),
];

/// The configurations of all entities of a thing, retained.
pub(super) fn discovery(scope: Scope<'_>, thing: &Known) -> Said {
    let mut said = Said::default();
    let maker = Maker { scope, thing };
    for property in thing.model.properties() {
        match maker.property(property) {
            Some((platform, config)) => said.publications.push(maker.config(platform, "", &property.name, config)),
            None => said.leave_out("unsupported", 1),
        }
    }
    for event in thing.model.events() {
        said.publications.push(maker.config("event", "event.", &event.name, maker.event(event)));
    }
    for action in thing.model.actions() {
        match maker.action(action) {
            Some(config) => said.publications.push(maker.config("button", "action.", &action.name, config)),
            None => said.leave_out("unsupported", 1),
        }
    }
    said
}

struct Maker<'a> {
    scope: Scope<'a>,
    thing: &'a Known,
}

impl Maker<'_> {
    fn topic(&self, way: &str, name: &str) -> String {
        format!("{}/{way}/{}", place(self.scope, &self.thing.id), level(name))
    }

    /// Adds what all entities have. `kind` keeps a property, an event and an action of one name apart; in the topic the
    /// platform does.
    fn config(&self, platform: &str, kind: &str, name: &str, mut config: Map<String, Json>) -> Publication {
        let device = format!("sluicegate/{}/{}", self.scope.gateway, self.thing.id);
        let availability =
            [gateway_availability(self.scope), format!("{}/availability", place(self.scope, &self.thing.id))];
        let all = json!({
            "unique_id": format!("{device}/{kind}{name}"),
            "availability": availability.map(|topic| json!({ "topic": topic })),
            "availability_mode": "all",
            "device": device_json(&device, &self.thing.id, &self.thing.model),
            "origin": { "name": "Sluicegate", "sw_version": env!("CARGO_PKG_VERSION") },
        });
        if let Json::Object(all) = all {
            config.extend(all);
        }
        let node = slug(&format!("{}_{}", self.scope.gateway, self.thing.id));
        let topic = format!("homeassistant/{platform}/{node}/{}/config", slug(name));
        Publication::json(topic, &Json::Object(config)).retained()
    }

    /// Platform and its own settings; `None` for what no entity can hold.
    fn property(&self, property: &Property) -> Option<(&'static str, Map<String, Json>)> {
        let writable = property.access.writable();
        let mut config = named(&property.title, &property.name);
        let platform = match &property.shape.kind {
            Kind::Bool => {
                config.extend(entries(json!({ "payload_on": "true", "payload_off": "false" })));
                if writable { "switch" } else { "binary_sensor" }
            }
            Kind::Int(_) | Kind::F32 | Kind::F64 => {
                measured(property, &mut config);
                if writable {
                    config.extend(span(property));
                    "number"
                } else {
                    let energy = config.get("device_class").is_some_and(|class| class == "energy");
                    let class = if energy { "total_increasing" } else { "measurement" };
                    config.insert("state_class".to_owned(), Json::from(class));
                    "sensor"
                }
            }
            Kind::TimeMs if !writable => {
                config.extend(entries(json!({
                    "device_class": "timestamp", "value_template": "{{ (value | int / 1000) | as_datetime }}",
                })));
                "sensor"
            }
            Kind::Enum(choices) => {
                let option = |value: &device_models::Value| {
                    value.as_str().map_or_else(|| Json::from(value).to_string(), str::to_owned)
                };
                let options: Vec<String> = choices.iter().map(|choice| option(&choice.value)).collect();
                config.insert("options".to_owned(), Json::from(options));
                if writable {
                    "select"
                } else {
                    config.insert("device_class".to_owned(), Json::from("enum"));
                    "sensor"
                }
            }
            Kind::Text if writable => "text",
            Kind::Text => "sensor",
            Kind::TimeMs | Kind::Bytes | Kind::Object(_) | Kind::Array(_) => return None,
        };
        if property.access != Access::WriteOnly {
            config.insert("state_topic".to_owned(), Json::from(self.topic("state", &property.name)));
        }
        if writable {
            let way = if is_text(&property.shape.kind) { "set-text" } else { "set" };
            config.insert("command_topic".to_owned(), Json::from(self.topic(way, &property.name)));
        }
        Some((platform, config))
    }

    fn event(&self, event: &Event) -> Map<String, Json> {
        let mut config = named(&event.title, &event.name);
        config.insert("state_topic".to_owned(), Json::from(self.topic("event", &event.name)));
        config.insert("event_types".to_owned(), json!([event.name.as_ref()]));
        config
    }

    /// A button has nothing to say but that it was pressed.
    fn action(&self, action: &Action) -> Option<Map<String, Json>> {
        if action.input.is_some() {
            return None;
        }
        let mut config = named(&action.title, &action.name);
        config.insert("command_topic".to_owned(), Json::from(self.topic("invoke", &action.name)));
        Some(config)
    }
}

fn device_json(identifier: &str, thing: &str, model: &Model) -> Json {
    let title = if model.title().text.is_empty() { model.name() } else { model.title().text.as_ref() };
    json!({ "identifiers": [identifier], "name": thing, "model": title, "model_id": model.name().as_ref() })
}

fn named(title: &Titles, name: &str) -> Map<String, Json> {
    let text = if title.text.is_empty() { name } else { title.text.as_ref() };
    Map::from_iter([("name".to_owned(), Json::from(text))])
}

fn entries(object: Json) -> Map<String, Json> {
    match object {
        Json::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Whether values travel as bare text, not as JSON.
fn is_text(kind: &Kind) -> bool {
    match kind {
        Kind::Text => true,
        Kind::Enum(choices) => choices.iter().any(|choice| choice.value.as_str().is_some()),
        _ => false,
    }
}

/// Unit and device class. A unit that Home Assistant does not know passes as it is; counts have none.
fn measured(property: &Property, config: &mut Map<String, Json>) {
    let Some(unit) = property.unit() else { return };
    let name = property.name.to_lowercase();
    let (text, class) = match UNITS.iter().find(|(ucum, ..)| *ucum == unit) {
        Some((_, text, class)) => (*text, *class),
        None if unit == "%" && name.contains("humid") => ("%", Some("humidity")),
        None if unit == "%" && name.contains("batt") => ("%", Some("battery")),
        None if unit == "1" || unit.starts_with('{') => return,
        None => (unit, None),
    };
    config.insert("unit_of_measurement".to_owned(), Json::from(text));
    if let Some(class) = class {
        config.insert("device_class".to_owned(), Json::from(class));
    }
}

/// Ends and step of a number that can be set.
fn span(property: &Property) -> Map<String, Json> {
    let (min, max) = match property.shape.range {
        Range::Int { min, max } => (min as f64, max as f64),
        Range::Float { min, max } => (min, max),
        Range::Open | Range::Length { .. } => (-NUMBER_MAX, NUMBER_MAX),
    };
    let whole = matches!(property.shape.kind, Kind::Int(_));
    let step = property.shape.step.unwrap_or(if whole { 1.0 } else { STEP_MIN }).max(STEP_MIN);
    let (min, max) = (min.max(-NUMBER_MAX), max.min(NUMBER_MAX));
    entries(json!({ "min": min, "max": max, "step": step, "mode": "box" }))
}

/// An id of discovery: letters, digits, `_` and `-`. What had to be replaced is kept apart by a checksum.
fn slug(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let replaced: String = text.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if replaced == text { replaced } else { format!("{replaced}-{:08x}", crc32c::crc32c(text.as_bytes())) }
}
