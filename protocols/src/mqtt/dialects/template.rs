//! Topics that the adapter's options describe, for firmware that follows nobody's convention.

use device_models::{Failure, Order, Report, Value, Word};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::{self, Unit};
use super::{Asked, Context, Dialect, Downward, Heard, is_level};
use crate::session::OptionsError;

/// Topics with `{product}`, `{device}`, `{event}`, `{action}` and `{id}` as whole levels. Without `{device}` the client
/// itself is meant.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemplateOptions {
    /// A JSON object of properties.
    pub telemetry: Option<String>,
    /// Any JSON, the event's data; needs `{event}`.
    pub event: Option<String>,
    /// Any JSON, the answer to a command; with `{id}` in the topic, or `id` in an object. An `error` in the object says
    /// that it failed.
    pub reply: Option<String>,
    /// Where a written property goes, as a JSON object (with `id` when there is a `reply`).
    pub write: Option<String>,
    /// Where names to read go.
    pub read: Option<String>,
    /// Where an action's input goes; needs `{action}`.
    pub invoke: Option<String>,
    /// Key in a telemetry or event object that holds the time: seconds, milliseconds, microseconds or nanoseconds by
    /// its size, or RFC 3339 text.
    pub time: Option<String>,
    /// Key in a telemetry object that holds the properties; absent: the object itself.
    pub properties: Option<String>,
}

/// The compiled options.
#[derive(Debug, Default)]
pub struct Template {
    telemetry: Option<Pattern>,
    event: Option<Pattern>,
    reply: Option<Pattern>,
    write: Option<Pattern>,
    read: Option<Pattern>,
    invoke: Option<Pattern>,
    time: Option<String>,
    properties: Option<String>,
}

#[derive(Debug)]
struct Pattern(Vec<Level>);

#[derive(Debug, PartialEq)]
enum Level {
    Plain(String),
    Name(Name),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Product,
    Device,
    Event,
    Action,
    Id,
}

/// What a topic bound.
#[derive(Debug, Default)]
struct Bound<'t> {
    product: Option<&'t str>,
    device: Option<&'t str>,
    event: Option<&'t str>,
    action: Option<&'t str>,
    id: Option<&'t str>,
}

#[derive(Debug)]
pub(super) struct TemplateDialect;

impl Template {
    pub fn compile(options: &TemplateOptions) -> Result<Self, OptionsError> {
        let compile = |key: &str, text: &Option<String>, needs: Option<Name>| {
            let wrong = |why: String| OptionsError { key: Some(format!("template.{key}")), why };
            let Some(text) = text else { return Ok(None) };
            let pattern = Pattern::compile(text).map_err(wrong)?;
            match needs {
                Some(name) if !pattern.0.contains(&Level::Name(name)) => {
                    Err(wrong(format!("must hold {{{}}}", format!("{name:?}").to_lowercase())))
                }
                _ => Ok(Some(pattern)),
            }
        };
        Ok(Self {
            telemetry: compile("telemetry", &options.telemetry, None)?,
            event: compile("event", &options.event, Some(Name::Event))?,
            reply: compile("reply", &options.reply, None)?,
            write: compile("write", &options.write, None)?,
            read: compile("read", &options.read, None)?,
            invoke: compile("invoke", &options.invoke, Some(Name::Action))?,
            time: options.time.clone(),
            properties: options.properties.clone(),
        })
    }
}

impl Pattern {
    fn compile(text: &str) -> Result<Self, String> {
        crate::mqtt::topic::check_name(text).map_err(str::to_owned)?;
        let level = |level: &str| match level {
            "{product}" => Ok(Level::Name(Name::Product)),
            "{device}" => Ok(Level::Name(Name::Device)),
            "{event}" => Ok(Level::Name(Name::Event)),
            "{action}" => Ok(Level::Name(Name::Action)),
            "{id}" => Ok(Level::Name(Name::Id)),
            plain if plain.contains(['{', '}']) => {
                Err(format!("level `{plain}`: {{product}}, {{device}}, {{event}}, {{action}} or {{id}} alone"))
            }
            plain => Ok(Level::Plain(plain.to_owned())),
        };
        text.split('/').map(level).collect::<Result<_, _>>().map(Self)
    }

    fn bind<'t>(&self, topic: &'t str) -> Option<Bound<'t>> {
        let mut bound = Bound::default();
        let mut levels = topic.split('/');
        for level in &self.0 {
            let text = levels.next()?;
            match level {
                Level::Plain(plain) if plain == text => {}
                Level::Name(name) if !text.is_empty() => *bound.slot(*name) = Some(text),
                _ => return None,
            }
        }
        levels.next().is_none().then_some(bound)
    }

    fn fill(&self, mut bound: Bound<'_>) -> Result<String, Failure> {
        let mut topic = String::new();
        for (index, level) in self.0.iter().enumerate() {
            if index > 0 {
                topic.push('/');
            }
            match level {
                Level::Plain(plain) => topic.push_str(plain),
                Level::Name(name) => match bound.slot(*name).filter(|text| is_level(text)) {
                    Some(text) => topic.push_str(text),
                    None => return Err(Failure::Unsupported(format!("{name:?} cannot stand in the template's topic"))),
                },
            }
        }
        Ok(topic)
    }

    fn names_id(&self) -> bool {
        self.0.contains(&Level::Name(Name::Id))
    }
}

impl<'t> Bound<'t> {
    fn slot(&mut self, name: Name) -> &mut Option<&'t str> {
        match name {
            Name::Product => &mut self.product,
            Name::Device => &mut self.device,
            Name::Event => &mut self.event,
            Name::Action => &mut self.action,
            Name::Id => &mut self.id,
        }
    }

    fn report(&self, own: &str, time_us: Option<i64>, word: Word) -> Report {
        let device = self.device.unwrap_or(own).to_owned();
        Report { device, product: self.product.map(str::to_owned), time_us, word }
    }
}

impl Dialect for TemplateDialect {
    fn name(&self) -> &'static str {
        "template"
    }

    fn read<'t>(&self, topic: &'t str, payload: &[u8], context: Context<'_>) -> Option<Result<Heard<'t>, String>> {
        let template = context.template?;
        let bind = |pattern: &Option<Pattern>| pattern.as_ref().and_then(|pattern| pattern.bind(topic));
        let report = if let Some(bound) = bind(&template.event) {
            template.event(&bound, payload, context.own)
        } else if let Some(bound) = bind(&template.reply) {
            reply(&bound, payload, context.own)
        } else {
            let bound = bind(&template.telemetry)?;
            template.telemetry(&bound, payload, context.own)
        };
        Some(report.map(|report| Heard { reports: vec![report], base: "" }))
    }

    fn say(&self, asked: Asked<'_>, context: Context<'_>) -> Result<Downward, Failure> {
        let missing = |key: &str| Failure::Unsupported(format!("the adapter's options name no `template.{key}`"));
        let template = context.template.ok_or_else(|| missing("write"))?;
        let (pattern, action, mut payload) = match &asked.command.order {
            Order::Write(properties) => (
                template.write.as_ref().ok_or_else(|| missing("write"))?,
                None,
                Json::Object(body::written(properties)),
            ),
            Order::Read(names) => {
                (template.read.as_ref().ok_or_else(|| missing("read"))?, None, json!({ "properties": names }))
            }
            Order::Invoke { action, input } => {
                let pattern = template.invoke.as_ref().ok_or_else(|| missing("invoke"))?;
                (pattern, Some(action.as_str()), Json::from(input))
            }
        };
        let topic = pattern.fill(Bound {
            product: Some(&asked.command.product),
            device: Some(&asked.command.device),
            event: None,
            action,
            id: Some(asked.wire),
        })?;
        let replies = template.reply.is_some();
        if replies && !pattern.names_id() {
            match &mut payload {
                Json::Object(map) => {
                    map.insert("id".to_owned(), Json::from(asked.wire));
                }
                other => payload = json!({ "id": asked.wire, "input": other.clone() }),
            }
        }
        Ok(Downward { topic, payload: body::bytes(&payload), retain: false, replies })
    }
}

impl Template {
    fn telemetry(&self, bound: &Bound<'_>, payload: &[u8], own: &str) -> Result<Report, String> {
        let mut body = body::object(payload)?;
        let time_us = match &self.time {
            Some(key) => body::take_time(&mut body, key, Unit::Size)?,
            None => None,
        };
        let properties = match &self.properties {
            Some(key) => body::take_object(&mut body, key)?,
            None => body,
        };
        Ok(bound.report(own, time_us, Word::Properties(body::values(properties))))
    }

    fn event(&self, bound: &Bound<'_>, payload: &[u8], own: &str) -> Result<Report, String> {
        let mut data = body::json(payload)?;
        let time_us = match (&self.time, &mut data) {
            (Some(key), Json::Object(map)) => body::take_time(map, key, Unit::Size)?,
            _ => None,
        };
        let name = bound.event.unwrap_or_default().to_owned();
        Ok(bound.report(own, time_us, Word::Event { name, data: Value::from(data) }))
    }
}

fn reply(bound: &Bound<'_>, payload: &[u8], own: &str) -> Result<Report, String> {
    let mut data = body::json(payload)?;
    let inside = data.as_object_mut().and_then(|map| map.remove("id"));
    let id = match (bound.id, inside) {
        (Some(id), _) => id.to_owned(),
        (None, Some(Json::String(id))) => id,
        (None, Some(Json::Number(id))) => id.to_string(),
        _ => return Err("`id` is missing".to_owned()),
    };
    let error = data.as_object().and_then(|map| map.get("error")).cloned();
    let outcome = body::outcome(error.is_some(), Some(data), error.as_ref());
    Ok(bound.report(own, None, Word::Reply { id, outcome }))
}
