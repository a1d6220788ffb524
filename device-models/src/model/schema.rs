//! WoT data schemas (TD 1.1, clause 5.3.2) compiled into shapes.

use super::fields::{Fields, Flaws, join};
use super::json::Json;
use super::shape::{Choice, Field, IntType, Kind, Range, Shape};
use super::{DEPTH_MAX, NAME_MAX};
use crate::value::Value;

/// Terms that describe and do not constrain; a gateway has no use for them.
pub(super) const ANNOTATIONS: [&str; 8] =
    ["@type", "title", "titles", "description", "descriptions", "default", "format", "contentMediaType"];

/// Terms that some kind of schema has. Known to all while the kind itself is wrong, to keep the list of flaws to causes.
const CONSTRAINTS: [&str; 16] = [
    "unit",
    "oneOf",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "contentEncoding",
    "items",
    "minItems",
    "maxItems",
    "properties",
    "required",
];

/// Values of one enumeration, and members of one object: a person has to read them.
const CHOICES_MAX: usize = 256;
/// UCUM codes are short; this is the longest in its own tables with room to spare.
const UNIT_MAX: usize = 64;

/// Reads a schema that stands alone (an input, an output, an event's data, an item, a member).
pub(super) fn alone(json: &Json, pointer: String, depth: usize, flaws: &mut Flaws) -> Option<Shape> {
    if depth > DEPTH_MAX {
        flaws.add(&pointer, format!("is nested deeper than {DEPTH_MAX} levels"));
        return None;
    }
    let mut fields = Fields::open(json, pointer, flaws)?;
    let shape = read(&mut fields, depth, flaws);
    fields.finish(&ANNOTATIONS, flaws);
    shape
}

/// Reads the schema terms of an object that may hold other terms too (a property). The caller closes it.
pub(super) fn read(fields: &mut Fields<'_>, depth: usize, flaws: &mut Flaws) -> Option<Shape> {
    let kind = kind(fields, depth, flaws);
    let Some(kind) = kind else {
        for term in CONSTRAINTS {
            fields.get(term);
        }
        return None;
    };
    let mut shape = Shape::of(kind);
    shape.range = match shape.range {
        Range::Int { min, max } => whole_range(fields, &shape.kind, (min, max), flaws),
        Range::Float { min, max } => float_range(fields, (min, max), flaws),
        Range::Length { .. } => length_range(fields, &shape.kind, flaws),
        Range::Open => Range::Open,
    };
    if shape.is_number() {
        shape.step = step(fields, flaws);
        shape.decimals = shape.step.and_then(decimals);
    }
    if let Some(unit) = fields.text("unit", flaws) {
        if unit.is_empty() || unit.len() > UNIT_MAX || unit.chars().any(char::is_control) {
            flaws
                .add(&fields.at("unit"), format!("must be a UCUM code such as `Cel` or `kW.h`, 1 to {UNIT_MAX} bytes"));
        }
        shape.unit = Some(unit.into());
    }
    Some(shape)
}

// === kinds ===

fn kind(fields: &mut Fields<'_>, depth: usize, flaws: &mut Flaws) -> Option<Kind> {
    let declared = fields.text("type", flaws);
    let exact = fields.text("sg:dataType", flaws);
    let one_of = fields.get("oneOf").is_some();
    if fields.get("enum").is_some() || one_of {
        let choices = choices(fields, one_of, flaws)?;
        return enumeration(fields, declared, exact, choices, flaws);
    }
    let Some(declared) = declared else {
        if fields.get("type").is_none() {
            let problem =
                "must say a `type` (boolean, integer, number, string, object, array), or a `oneOf` of `const`s";
            flaws.add(&fields.pointer, problem);
        }
        return None;
    };
    let encoded = declared == "string" && base64(fields, flaws);
    match (declared, exact) {
        ("boolean", None | Some("bool")) => Some(Kind::Bool),
        ("integer", None) => Some(Kind::Int(IntType::I64)),
        ("integer", Some("time-ms")) => Some(Kind::TimeMs),
        ("integer", Some(name)) => {
            let int = IntType::ALL.into_iter().find(|int| int.name() == name);
            if int.is_none() {
                wrong_exact(fields, declared, "i8, i16, i32, i64, u8, u16, u32, u64, time-ms", flaws);
            }
            int.map(Kind::Int)
        }
        ("number", None | Some("f64")) => Some(Kind::F64),
        ("number", Some("f32")) => Some(Kind::F32),
        ("string", None) if encoded => Some(Kind::Bytes),
        ("string", Some("bytes")) => Some(Kind::Bytes),
        ("string", None | Some("string")) if !encoded => Some(Kind::Text),
        ("object", None | Some("object")) => members(fields, depth, flaws),
        ("array", None | Some("array")) => items(fields, depth, flaws),
        ("boolean", _) => wrong_exact(fields, declared, "bool", flaws),
        ("number", _) => wrong_exact(fields, declared, "f32, f64", flaws),
        ("string", _) if encoded => wrong_exact(fields, "string in base64", "bytes", flaws),
        ("string", _) => wrong_exact(fields, declared, "string, bytes", flaws),
        ("object", _) => wrong_exact(fields, declared, "object", flaws),
        ("array", _) => wrong_exact(fields, declared, "array", flaws),
        (other, _) => {
            let problem = format!("no such type `{other}`; there are boolean, integer, number, string, object, array");
            flaws.add(&fields.at("type"), problem);
            None
        }
    }
}

fn wrong_exact(fields: &Fields<'_>, declared: &str, right: &str, flaws: &mut Flaws) -> Option<Kind> {
    flaws.add(&fields.at("sg:dataType"), format!("no such data type for type {declared}; there are {right}"));
    None
}

fn base64(fields: &mut Fields<'_>, flaws: &mut Flaws) -> bool {
    match fields.text("contentEncoding", flaws) {
        None => false,
        Some("base64") => true,
        Some(other) => {
            let problem = format!("no such encoding `{other}`; there is base64");
            flaws.add(&fields.at("contentEncoding"), problem);
            false
        }
    }
}

/// `oneOf` of constants, or `enum`.
fn choices(fields: &mut Fields<'_>, one_of: bool, flaws: &mut Flaws) -> Option<Vec<Choice>> {
    let key = if one_of { "oneOf" } else { "enum" };
    if one_of && fields.get("enum").is_some() {
        flaws.add(&fields.at("enum"), "says the same as `oneOf`; keep `oneOf`");
    }
    let items = fields.array(key, flaws)?;
    if items.is_empty() || items.len() > CHOICES_MAX {
        flaws.add(&fields.at(key), format!("must have 1 to {CHOICES_MAX} entries, not {}", items.len()));
        return None;
    }
    let pointer = fields.at(key);
    let mut choices: Vec<Choice> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = join(&pointer, &index.to_string());
        let choice = if one_of { constant(item, at.clone(), flaws) } else { choice(item, None, &at, flaws) }?;
        if choices.iter().any(|earlier| earlier.value == choice.value) {
            flaws.add(&at, "is said twice; keep one");
        }
        if choices.first().is_some_and(|first| first.value.kind() != choice.value.kind()) {
            flaws.add(&at, "must be of the same type as the first entry");
        }
        choices.push(choice);
    }
    Some(choices)
}

fn constant(json: &Json, pointer: String, flaws: &mut Flaws) -> Option<Choice> {
    let mut fields = Fields::open(json, pointer, flaws)?;
    let title = fields.text("title", flaws);
    let value = fields.get("const");
    let choice = if let Some(value) = value {
        choice(value, title, &fields.at("const"), flaws)
    } else {
        flaws.add(&fields.pointer, "must have a `const`: only enumerations may say `oneOf`");
        None
    };
    fields.finish(&["titles", "description", "descriptions", "type"], flaws);
    choice
}

fn choice(json: &Json, title: Option<&str>, pointer: &str, flaws: &mut Flaws) -> Option<Choice> {
    let value = match json {
        Json::Number(number) => number.as_i64().map(Value::Int),
        Json::Text(text) => Some(Value::Text(text.clone())),
        _ => None,
    };
    let Some(value) = value else {
        flaws.add(pointer, "must be a whole number or a text");
        return None;
    };
    let title = title.map_or_else(|| serde_json::Value::from(&value).to_string().into(), Box::from);
    Some(Choice { value, title })
}

fn enumeration(
    fields: &Fields<'_>,
    declared: Option<&str>,
    exact: Option<&str>,
    choices: Vec<Choice>,
    flaws: &mut Flaws,
) -> Option<Kind> {
    let right = match choices.first().map(|choice| &choice.value) {
        Some(Value::Int(_)) => "integer",
        _ => "string",
    };
    if declared.is_some_and(|declared| declared != right) {
        flaws.add(&fields.at("type"), format!("must be {right}, as the enumeration's values are"));
    }
    if exact.is_some_and(|exact| exact != "enum") {
        return wrong_exact(fields, "enumeration", "enum", flaws);
    }
    Some(Kind::Enum(choices.into()))
}

fn members(fields: &mut Fields<'_>, depth: usize, flaws: &mut Flaws) -> Option<Kind> {
    let required = required(fields, flaws);
    let Some(json) = fields.get("properties") else {
        flaws.add(&fields.pointer, "an object must say its `properties`");
        return None;
    };
    let object = Fields::open(json, fields.at("properties"), flaws)?;
    let mut members = Vec::new();
    for (name, json, pointer) in object.entries() {
        if name.is_empty() || name.len() > NAME_MAX || members.len() >= CHOICES_MAX {
            flaws.add(&pointer, format!("a member's name has 1 to {NAME_MAX} bytes; at most {CHOICES_MAX} members"));
            return None;
        }
        if let Some(shape) = alone(json, pointer, depth + 1, flaws) {
            members.push(Field { name: name.into(), required: required.contains(&name), shape });
        }
    }
    for name in required {
        if !object.entries().any(|(member, ..)| member == name) {
            flaws.add(&fields.at("required"), format!("names `{name}`, which is not among the properties"));
        }
    }
    Some(Kind::Object(members.into()))
}

fn required<'a>(fields: &mut Fields<'a>, flaws: &mut Flaws) -> Vec<&'a str> {
    let names = fields.array("required", flaws).unwrap_or_default();
    if names.iter().any(|name| name.as_text().is_none()) {
        flaws.add(&fields.at("required"), "must be an array of texts");
    }
    names.iter().filter_map(Json::as_text).collect()
}

fn items(fields: &mut Fields<'_>, depth: usize, flaws: &mut Flaws) -> Option<Kind> {
    let Some(json) = fields.get("items") else {
        flaws.add(&fields.pointer, "an array must say its `items`");
        return None;
    };
    let shape = alone(json, fields.at("items"), depth + 1, flaws)?;
    Some(Kind::Array(Box::new(shape)))
}

// === ranges ===

fn whole_range(fields: &mut Fields<'_>, kind: &Kind, limits: (i128, i128), flaws: &mut Flaws) -> Range {
    let low = whole(fields, "minimum", flaws);
    let above = whole(fields, "exclusiveMinimum", flaws).map(|n| n + 1);
    let high = whole(fields, "maximum", flaws);
    let below = whole(fields, "exclusiveMaximum", flaws).map(|n| n - 1);
    for (term, end) in [("minimum", low), ("maximum", high)] {
        if end.is_some_and(|end| end < limits.0 || end > limits.1) {
            let problem = format!("{} holds {} to {} only", kind.data_type(), limits.0, limits.1);
            flaws.add(&fields.at(term), problem);
        }
    }
    let min = low.max(above).map_or(limits.0, |n| n.max(limits.0));
    let max = [high, below].into_iter().flatten().min().map_or(limits.1, |n| n.min(limits.1));
    if min > max {
        flaws.add(&fields.pointer, format!("leaves no value: minimum {min} is above maximum {max}"));
    }
    Range::Int { min, max }
}

fn whole(fields: &mut Fields<'_>, term: &'static str, flaws: &mut Flaws) -> Option<i128> {
    let number = fields.number(term, flaws)?;
    let exact = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    let float = || number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1.0e20).map(|n| n as i128);
    let whole = exact.or_else(float);
    if whole.is_none() {
        flaws.add(&fields.at(term), format!("must be a whole number for type integer, not {number}"));
    }
    whole
}

fn float_range(fields: &mut Fields<'_>, limits: (f64, f64), flaws: &mut Flaws) -> Range {
    let low = fields.float("minimum", flaws);
    let above = fields.float("exclusiveMinimum", flaws).map(f64::next_up);
    let high = fields.float("maximum", flaws);
    let below = fields.float("exclusiveMaximum", flaws).map(f64::next_down);
    let min = [low, above].into_iter().flatten().fold(limits.0, f64::max);
    let max = [high, below].into_iter().flatten().fold(limits.1, f64::min);
    if min > max {
        flaws.add(&fields.pointer, format!("leaves no value: minimum {min} is above maximum {max}"));
    }
    Range::Float { min, max }
}

fn length_range(fields: &mut Fields<'_>, kind: &Kind, flaws: &mut Flaws) -> Range {
    let (low, high) =
        if matches!(kind, Kind::Array(_)) { ("minItems", "maxItems") } else { ("minLength", "maxLength") };
    let min = fields.count(low, flaws).unwrap_or(0);
    let max = fields.count(high, flaws).unwrap_or(u32::MAX);
    if min > max {
        flaws.add(&fields.at(low), format!("{min} is above {high} {max}"));
    }
    Range::Length { min, max }
}

fn step(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Option<f64> {
    let step = fields.float("multipleOf", flaws)?;
    if step > 0.0 {
        return Some(step);
    }
    flaws.add(&fields.at("multipleOf"), format!("must be above 0, not {step}"));
    None
}

/// The fewest decimals that write `step` out in full.
fn decimals(step: f64) -> Option<u8> {
    (0..=9_u8).find(|n| {
        let moved = step * 10_f64.powi(i32::from(*n));
        moved >= 0.5 && (moved - moved.round()).abs() <= moved * 1e-9
    })
}
