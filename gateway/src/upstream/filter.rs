//! What a destination wants: things and products by pattern, properties, classes, quality. What it does not want is not
//! lost: the cursor goes over it.

use device_models::{Body, Class, Message, Quality};

use crate::config;

/// The reason of the holes that say what was not wanted.
pub(super) const FILTERED: &str = "filtered";

/// Compiled from the configuration. Without any setting everything is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    things: Vec<Pattern>,
    products: Vec<Pattern>,
    properties: Vec<Pattern>,
    classes: Vec<Class>,
    quality: config::MinQuality,
}

/// `*` stands for any text, `?` for one character.
#[derive(Debug, Clone)]
struct Pattern(Vec<char>);

// === impl Filter ===

impl Filter {
    pub(super) fn new(config: &config::Filter) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern(text.chars().collect())).collect();
        Self {
            things: patterns(&config.things),
            products: patterns(&config.products),
            properties: patterns(&config.properties),
            classes: config.classes.clone(),
            quality: config.min_quality,
        }
    }

    /// Whether it lets everything through.
    pub(super) fn is_open(&self) -> bool {
        self.things.is_empty()
            && self.products.is_empty()
            && self.properties.is_empty()
            && self.classes.is_empty()
            && self.quality == config::MinQuality::Any
    }

    /// What is wanted of a message; `None`: nothing. What tells of a loss is always wanted.
    pub(super) fn wanted(&self, mut message: Message) -> Option<Message> {
        if matches!(message.body, Body::Gap { .. }) {
            return Some(message);
        }
        let named = |patterns: &[Pattern], name: &str| patterns.is_empty() || patterns.iter().any(|p| p.fits(name));
        let class = self.classes.is_empty() || self.classes.contains(&message.class());
        if !class || !named(&self.things, &message.thing) || !named(&self.products, &message.model) {
            return None;
        }
        match &mut message.body {
            Body::Properties(samples) => {
                let before = samples.len();
                samples.retain(|sample| named(&self.properties, &sample.name) && self.is_good_enough(sample.quality));
                // A report without any property is one of its own right.
                (before == 0 || !samples.is_empty()).then_some(message)
            }
            Body::Event { quality, .. } => self.is_good_enough(*quality).then_some(message),
            _ => Some(message),
        }
    }

    fn is_good_enough(&self, quality: Quality) -> bool {
        match self.quality {
            config::MinQuality::Any => true,
            config::MinQuality::Uncertain => !matches!(quality, Quality::WrongType | Quality::UnknownProperty),
            config::MinQuality::Good => quality == Quality::Good,
        }
    }
}

// === impl Pattern ===

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let pattern = &self.0;
        // The place after the last `*`, and what it has swallowed: a mismatch makes it swallow one more.
        let (mut at, mut of, mut star) = (0, 0, None);
        while of < name.len() {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at + 1, of));
                    at += 1;
                }
                Some(c) if *c == '?' || name.get(of) == Some(c) => {
                    at += 1;
                    of += 1;
                }
                _ => {
                    let Some((after, swallowed)) = star else { return false };
                    star = Some((after, swallowed + 1));
                    (at, of) = (after, swallowed + 1);
                }
            }
        }
        pattern.iter().skip(at).all(|c| *c == '*')
    }
}

#[cfg(test)]
mod tests {
    use device_models::{Sample, Value};

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::new(&toml::from_str(text).unwrap())
    }

    fn report(thing: &str, samples: &[(&str, Quality)]) -> Message {
        let sample = |(name, quality): &(&str, Quality)| Sample {
            alias: 1,
            name: (*name).into(),
            value: Value::Int(1),
            quality: *quality,
        };
        let body = Body::Properties(samples.iter().map(sample).collect());
        Message { thing: thing.into(), model: "energy-meter".into(), time_us: 0, received_us: 0, body }
    }

    #[test]
    fn patterns_fit_as_documented() {
        for (pattern, name, fits) in [
            ("meter-*", "meter-1", true),
            ("meter-*", "lamp", false),
            ("*", "", true),
            ("*-a*-?", "x-abc-a-1", true),
            ("*-a*-?", "x-abc-a-12", false),
            ("gb/*/1", "gb/34/02/1", true),
            ("m?", "m设", true),
            ("", "m", false),
        ] {
            assert_eq!(Pattern(pattern.chars().collect()).fits(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_left_of_a_report_is_what_was_asked_for() {
        let all =
            report("meter-1", &[("power", Quality::Good), ("voltage", Quality::OutOfRange), ("x", Quality::WrongType)]);
        let left = |filter: &Filter, message: &Message| match filter.wanted(message.clone()).map(|m| m.body) {
            Some(Body::Properties(samples)) => samples.iter().map(|s| s.name.to_string()).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert_eq!(left(&filter(""), &all), ["power", "voltage", "x"]);
        assert_eq!(left(&filter("properties = [\"p*\", \"x\"]"), &all), ["power", "x"]);
        assert_eq!(left(&filter("min_quality = \"uncertain\""), &all), ["power", "voltage"]);
        assert_eq!(left(&filter("min_quality = \"good\""), &all), ["power"]);
        for none in
            ["things = [\"lamp*\"]", "products = [\"relay-switch\"]", "classes = [\"event\"]", "properties = [\"q\"]"]
        {
            assert!(filter(none).wanted(all.clone()).is_none(), "{none}");
        }
        assert!(filter("").is_open() && !filter("classes = [\"live\"]").is_open());
    }

    #[test]
    fn what_tells_of_a_loss_is_always_wanted() {
        let body = Body::Gap { class: Class::Live, first: 1, last: 2, reason: "cap".to_owned() };
        let gap = Message { body, ..report("", &[]) };
        assert!(filter("things = [\"lamp\"]\nclasses = [\"live\"]").wanted(gap).is_some());
    }
}
