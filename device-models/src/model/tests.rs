//! Thing models as authors write them: what compiles to what, and what each error names.

use proptest::prelude::*;

use super::*;
use crate::command::Order;
use crate::value::Value;

const HEAD: &str = r#""@context":"https://www.w3.org/2022/wot/td/v1.1","@type":"tm:ThingModel","title":"T""#;

fn parse(rest: &str) -> Result<Model, ModelError> {
    Model::parse("t.tm.json", &format!("{{{HEAD}{rest}}}"))
}

fn property(json: &str) -> Result<Model, ModelError> {
    parse(&format!(r#","properties":{{"p":{json}}}"#))
}

fn shipped(name: &str) -> Arc<Model> {
    Models::shipped().expect("shipped").get(name).expect("there").clone()
}

#[test]
fn every_shipped_model_is_whole() {
    let models = Models::shipped().expect("shipped models have no flaw");
    assert_eq!(models.len(), 6);
    for model in models.iter() {
        assert!(!model.revision().is_empty(), "{}: no version", model.name());
        let titles = std::iter::once(model.title())
            .chain(model.properties().iter().map(|p| &p.title))
            .chain(model.actions().iter().map(|a| &a.title))
            .chain(model.events().iter().map(|e| &e.title));
        for title in titles {
            assert!(title.others.iter().any(|(language, _)| &**language == "zh"), "{}: `{title}`", model.name());
        }
        for property in model.properties() {
            let at = format!("{}/{}", model.name(), property.name);
            assert_eq!(
                property.shape.is_number(),
                property.unit().is_some(),
                "{at}: a number has a unit, nothing else"
            );
            assert_eq!(model.property_by_alias(property.alias), Some(property), "{at}");
            for spelling in &property.spellings {
                assert_eq!(model.property(spelling), Some(property), "{at}");
            }
            assert!(!matches!(property.shape.kind, Kind::F32), "{at}: decimals travel better than f32");
        }
    }
}

#[test]
fn energy_meter_compiles_to_this() {
    let model = shipped("energy-meter");
    let line = |p: &Property| format!("{} {} {:?} {} {:?}", p.alias, p.name, p.access, p.shape, p.shape.decimals);
    let table: Vec<String> = model.properties().iter().map(line).collect();
    assert_eq!(
        table,
        [
            "1 voltage ReadOnly a number from 0 to 1000 in steps of 0.01 V Some(2)",
            "2 current ReadOnly a number from -10000 to 10000 in steps of 0.001 A Some(3)",
            "3 power ReadOnly a number from -10000000 to 10000000 in steps of 0.1 W Some(1)",
            "4 energy ReadOnly a number from 0 to 1000000000 in steps of 0.001 kW.h Some(3)",
            "5 energyExported ReadOnly a number from 0 to 1000000000 in steps of 0.001 kW.h Some(3)",
            "6 powerFactor ReadOnly a number from -1 to 1 in steps of 0.001 1 Some(3)",
            "7 frequency ReadOnly a number from 0 to 500 in steps of 0.01 Hz Some(2)",
            "8 relay ReadWrite a boolean None",
        ]
    );
    assert_eq!(model.event("tamper").map(|event| event.level), Some(Level::Urgent));
}

/// Each flaw's text names the place and says what would be right.
#[test]
fn flaws_name_their_place() {
    let table: &[(&str, &str)] = &[
        (r#"{"type":"float"}"#, "/properties/p/type: no such type `float`; there are boolean, integer, number"),
        (r"{}", "/properties/p: must say a `type`"),
        (r#"{"type":7}"#, "/properties/p/type: must be a text, not a number"),
        (
            r#"{"type":"integer","sg:dataType":"u7"}"#,
            "/properties/p/sg:dataType: no such data type for type integer; there are i8",
        ),
        (
            r#"{"type":"number","sg:dataType":"i8"}"#,
            "/properties/p/sg:dataType: no such data type for type number; there are f32, f64",
        ),
        (
            r#"{"type":"number","sg:scal":2}"#,
            "/properties/p/sg:scal: no such term here; there are sg:alarms, sg:alias, sg:dataType, sg:deadband",
        ),
        (
            r#"{"type":"string","minimum":2}"#,
            "/properties/p/minimum: is no term of Thing Model 1.1 here; the terms are",
        ),
        (
            r#"{"type":"string","contentEncoding":"hex"}"#,
            "/properties/p/contentEncoding: no such encoding `hex`; there is base64",
        ),
        (
            r#"{"type":"number","minimum":3,"maximum":2}"#,
            "/properties/p: leaves no value: minimum 3 is above maximum 2",
        ),
        (
            r#"{"type":"integer","minimum":0.5}"#,
            "/properties/p/minimum: must be a whole number for type integer, not 0.5",
        ),
        (r#"{"type":"integer","sg:dataType":"u8","maximum":256}"#, "/properties/p/maximum: u8 holds 0 to 255 only"),
        (r#"{"type":"number","multipleOf":0}"#, "/properties/p/multipleOf: must be above 0"),
        (r#"{"type":"number","sg:scale":0}"#, "/properties/p/sg:scale: must not be 0"),
        (r#"{"type":"string","sg:scale":2}"#, "/properties/p/sg:scale: is for types integer and number only"),
        (r#"{"type":"boolean","sg:deadband":2}"#, "/properties/p/sg:deadband: is for types integer and number only"),
        (r#"{"type":"number","sg:deadband":-1}"#, "/properties/p/sg:deadband: must be 0 or more"),
        (r#"{"type":"number","sg:report":{"deadband":-1}}"#, "/properties/p/sg:report/deadband: must be 0 or more"),
        (
            r#"{"type":"number","sg:report":{"window":5}}"#,
            "/properties/p/sg:report: `window` (seconds, above 0) and `take`",
        ),
        (
            r#"{"type":"number","sg:report":{"window":5,"take":"sum"}}"#,
            "/properties/p/sg:report/take: there is no `sum`",
        ),
        (r#"{"type":"boolean","sg:report":{"deadband":1}}"#, "/properties/p/sg:report: only types integer and number"),
        (r#"{"type":"number","sg:report":{"intervalMin":-1}}"#, "/properties/p/sg:report/intervalMin: must be from 0"),
        (r#"{"type":"number","sg:alarms":[{"above":1}]}"#, "/properties/p/sg:alarms/0: needs an `event`"),
        (r#"{"type":"number","sg:alarms":[{"event":"e","above":1,"below":2}]}"#, "/properties/p/sg:alarms/0: needs an"),
        (
            r#"{"type":"string","sg:alarms":[{"event":"e","above":1}]}"#,
            "/properties/p/sg:alarms/0: `above` and `below`",
        ),
        (
            r#"{"type":"number","sg:alarms":[{"event":"e","above":1,"level":"bad"}]}"#,
            "/properties/p/sg:alarms/0/level: no such",
        ),
        (r#"{"type":"number","sg:alias":0}"#, "/properties/p/sg:alias: must be from 1 to 4096"),
        (r#"{"type":"number","sg:name":[]}"#, "/properties/p/sg:name: must be a text or an array of texts"),
        (r#"{"type":"number","readOnly":true,"writeOnly":true}"#, "/properties/p/writeOnly: contradicts `readOnly`"),
        (r#"{"type":"number","readOnly":"yes"}"#, "/properties/p/readOnly: must be true or false, not a text"),
        (r#"{"type":"number","unit":""}"#, "/properties/p/unit: must be a UCUM code"),
        (r#"{"type":"number","type":"string"}"#, "/properties/p/type: is said twice; keep one"),
        (r#"{"tm:ref":"x","type":"number"}"#, "/properties/p/tm:ref: is not supported"),
    ];
    told(table);
}

#[test]
fn flaws_of_enumerations_and_composites_name_their_place() {
    let table: &[(&str, &str)] = &[
        (r#"{"oneOf":[{"title":"x"}]}"#, "/properties/p/oneOf/0: must have a `const`"),
        (r#"{"enum":[1,1]}"#, "/properties/p/enum/1: is said twice"),
        (r#"{"enum":[1,"a"]}"#, "/properties/p/enum/1: must be of the same type as the first entry"),
        (r#"{"enum":[]}"#, "/properties/p/enum: must have 1 to 256 entries, not 0"),
        (r#"{"type":"string","enum":[1]}"#, "/properties/p/type: must be integer, as the enumeration's values are"),
        (r#"{"type":"object"}"#, "/properties/p: an object must say its `properties`"),
        (r#"{"type":"array"}"#, "/properties/p: an array must say its `items`"),
        (
            r#"{"type":"object","properties":{"a/b":{"type":"x"}}}"#,
            "/properties/p/properties/a~1b/type: no such type `x`",
        ),
        (
            r#"{"type":"object","properties":{},"required":["q"]}"#,
            "/properties/p/required: names `q`, which is not among",
        ),
        (
            r#"{"type":"array","items":{"type":"number"},"minItems":3,"maxItems":1}"#,
            "/properties/p/minItems: 3 is above maxItems 1",
        ),
        (r"7", "/properties/p: must be an object, not a number"),
    ];
    told(table);
}

fn told(table: &[(&str, &str)]) {
    for (json, wanted) in table {
        let error = property(json).expect_err(json).to_string();
        assert!(error.starts_with("t.tm.json: "), "{error}");
        assert!(error.contains(wanted), "{json}\n  gave   {error}\n  wanted {wanted}");
    }
}

#[test]
fn flaws_of_the_whole_thing_name_their_place() {
    let table: &[(&str, &str)] = &[
        (r#","sg:opne":true"#, "/sg:opne: no such term here; there are sg:open, sg:stream"),
        (r#","propertis":{}"#, "/propertis: is no term of Thing Model 1.1 here"),
        (r#","version":{"modle":"1"}"#, "/version/modle: is no term"),
        (r#","links":[{"rel":"tm:extends","href":"x"}]"#, "/links/0: tm:extends is not supported"),
        (
            r#","events":{"e":{"sg:level":"loud"}}"#,
            "/events/e/sg:level: no such level `loud`; there are info, warn, error, urgent",
        ),
        (r#","actions":{"a":{"input":{"type":"x"}}}"#, "/actions/a/input/type: no such type `x`"),
        (r#","actions":{"a b":{}}"#, "/actions/a b: a name has 1 to 128 bytes, and no space"),
        (
            r#","properties":{"a":{"type":"number","sg:alias":2},"b":{"type":"number","sg:alias":2}}"#,
            "/properties/b/sg:alias: 2 is the alias of `a` already",
        ),
        (
            r#","properties":{"a":{"type":"number"},"b":{"type":"number","sg:name":"a"}}"#,
            "/properties/b/sg:name: `a` means another one already",
        ),
    ];
    for (json, wanted) in table {
        let error = parse(json).expect_err(json).to_string();
        assert!(error.contains(wanted), "{json}\n  gave   {error}\n  wanted {wanted}");
    }
}

#[test]
fn all_flaws_are_told_at_once() {
    let json = r#"{"title":"T","properties":{"a":{"type":"x"},"b":{"type":"number","minimum":"0"}}}"#;
    let Err(ModelError::Flawed { flaws, .. }) = Model::parse("t.tm.json", json) else { panic!("must be flawed") };
    let pointers: Vec<&str> = flaws.iter().map(|flaw| flaw.pointer.as_str()).collect();
    assert_eq!(pointers, ["/@context", "/@type", "/properties/a/type", "/properties/b/minimum"]);
}

#[test]
fn files_have_limits() {
    assert!(matches!(Model::parse("meter.json", "{}"), Err(ModelError::FileName { .. })));
    assert!(matches!(Model::parse("设备.tm.json", "{}"), Err(ModelError::FileName { .. })));
    let long = " ".repeat(FILE_MAX + 1);
    assert!(matches!(Model::parse("a.tm.json", &long), Err(ModelError::TooLarge { .. })));
    let error = Model::parse("models/a.tm.json", "{\n  \"a\": tru }").unwrap_err().to_string();
    assert!(error.starts_with("models/a.tm.json:2:"), "{error}");
    let deep = (0..DEPTH_MAX)
        .fold(r#"{"type":"number"}"#.to_owned(), |json, _| format!(r#"{{"type":"array","items":{json}}}"#));
    assert!(property(&deep).unwrap_err().to_string().contains("is nested deeper than 8 levels"));
    let many: Vec<String> = (0..=AFFORDANCES_MAX).map(|n| format!(r#""p{n}":{{"type":"number"}}"#)).collect();
    let error = parse(&format!(r#","properties":{{{}}}"#, many.join(","))).unwrap_err().to_string();
    assert!(error.contains("/properties: has 1025 entries; the most is 1024"), "{error}");
    assert!(Model::parse("a.tm.json", &"[".repeat(100_000)).is_err(), "nesting does not overflow the stack");
}

#[test]
fn names_on_a_shelf_are_unique() {
    let mut models = Models::shipped().unwrap();
    let json = format!("{{{HEAD}}}");
    assert_eq!(models.add("pump.tm.json", &json).unwrap().name().as_ref(), "pump");
    assert!(matches!(models.add("x/pump.tm.json", &json), Err(ModelError::NameTaken { .. })));
    assert!(matches!(models.add("generic.tm.json", &json), Err(ModelError::NameTaken { .. })));
    assert_eq!(models.names().len(), models.len());
}

#[test]
fn aliases_fill_the_gaps_in_the_files_order() {
    let model = parse(
        r#","properties":{"z":{"type":"number"},"m":{"type":"number","sg:alias":1},"a":{"type":"number"},"q":{"type":"number","sg:alias":9}}"#,
    )
    .unwrap();
    let aliases: Vec<_> = model.properties().iter().map(|p| (&*p.name, p.alias)).collect();
    assert_eq!(aliases, [("z", 2), ("m", 1), ("a", 3), ("q", 9)]);
    assert_eq!(model.property_by_alias(9).map(|p| &*p.name), Some("q"));
    assert_eq!(model.property_by_alias(5), None);
    assert_eq!(model.property_by_alias(u32::MAX), None);
}

#[test]
fn writes_are_checked() {
    let model = parse(
        r#","properties":{"set":{"type":"number","minimum":5,"maximum":30,"multipleOf":0.5,"sg:scale":0.1,"sg:name":["sp","setpoint"]},
        "mode":{"oneOf":[{"const":0,"title":"Off"},{"const":1,"title":"Heat"}]},
        "now":{"type":"number","readOnly":true},"key":{"type":"string","maxLength":4,"writeOnly":true}}"#,
    )
    .unwrap();
    let write = |name: &str, value: Value| model.check_write(&[(name.to_owned(), value)]);
    assert_eq!(write("set", Value::Text("21.5".to_owned())), Ok(vec![("sp".to_owned(), Value::Int(215))]));
    assert_eq!(write("setpoint", Value::Int(30)), Ok(vec![("sp".to_owned(), Value::Int(300))]));
    assert_eq!(write("mode", Value::Int(1)), Ok(vec![("mode".to_owned(), Value::Int(1))]));
    let text = |name: &str, value: Value| write(name, value).unwrap_err().to_string();
    assert_eq!(
        text("set", Value::Float(31.0)),
        "model `t`: property `set` wants a number from 5 to 30 in steps of 0.5; 31.0 is outside"
    );
    assert!(text("set", Value::Float(20.3)).ends_with("20.3 is outside"));
    assert!(text("set", Value::Bool(true)).ends_with("not boolean true"));
    assert!(text("mode", Value::Int(2)).contains("wants one of 0, 1; 2 is outside"));
    assert!(text("key", Value::Text("12345".to_owned())).contains("a text of length 0 to 4"));
    assert_eq!(text("now", Value::Int(1)), "model `t`: property `now` is read-only");
    assert_eq!(text("nwo", Value::Int(1)), "model `t` has no property `nwo`; it has set, mode, now, key");
    assert!(matches!(model.check_write(&[]), Err(Mismatch::Empty { .. })));
    let twice = [("set".to_owned(), Value::Int(6)), ("sp".to_owned(), Value::Int(7))];
    assert!(matches!(model.check_write(&twice), Err(Mismatch::Twice { .. })));
    assert!(text(&"x".repeat(1000), Value::Null).len() < 200, "what a peer chose is quoted in part");

    assert_eq!(model.check(&Order::Read(vec!["set".to_owned()])), Ok(Order::Read(vec!["sp".to_owned()])));
    assert!(matches!(model.check_read(&["key".to_owned()]), Err(Mismatch::WriteOnly { .. })));
}

#[test]
fn invocations_are_checked() {
    let model = shipped("relay-switch");
    let duration = |ms: i64| Value::Object([("duration".to_owned(), Value::Int(ms))].into());
    assert_eq!(model.check_invoke("toggle", &Value::Null), Ok(("toggle".to_owned(), Value::Null)));
    assert_eq!(model.check_invoke("pulse", &duration(500)), Ok(("pulse".to_owned(), duration(500))));
    assert!(matches!(model.check_invoke("pulse", &duration(5)), Err(Mismatch::OutOfRange { .. })));
    assert!(matches!(model.check_invoke("pulse", &Value::Null), Err(Mismatch::WrongType { .. })));
    assert!(matches!(model.check_invoke("toggle", &Value::Int(1)), Err(Mismatch::WrongType { .. })));
    let error = model.check_invoke("explode", &Value::Null).unwrap_err().to_string();
    assert_eq!(error, "model `relay-switch` has no action `explode`; it has toggle, pulse");
    let generic = shipped("generic");
    assert_eq!(generic.check_invoke("reboot", &Value::Int(1)), Ok(("reboot".to_owned(), Value::Int(1))));
}

#[test]
fn linear_undoes_itself_and_stays_decimal() {
    let tenth = Linear::new(0.1, 0.0).unwrap();
    assert_eq!(tenth.value(3.0).to_string(), "0.3");
    assert_eq!(tenth.raw(0.3).to_string(), "3");
    assert_eq!(Linear::new(0.0, 1.0), None);
    assert_eq!(Linear::new(f64::NAN, 1.0), None);
}

proptest! {
    #[test]
    fn linear_round_trip(raw in -100_000_i32..100_000, digits in 0..4_i32, offset in -1000_i32..1000) {
        let linear = Linear::new(10_f64.powi(-digits), f64::from(offset)).unwrap();
        prop_assert_eq!(linear.raw(linear.value(f64::from(raw))) as i32, raw);
    }

    /// Any text, and any damage to a good file, gives a model or an error, never a panic.
    #[test]
    fn hostile_files(text in "\\PC{0,64}", at in 0..2000_usize, byte in 0..128_u8) {
        drop(Model::parse("t.tm.json", &text));
        let mut json = include_str!("../../models/temperature-humidity.tm.json").as_bytes().to_vec();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(json) = String::from_utf8(json) {
            drop(Model::parse("t.tm.json", &json));
        }
    }
}

#[test]
fn what_a_thing_is_to_have_is_held_to_the_same_and_keeps_the_models_names() {
    let relay = shipped("relay-switch");
    let wish = |name: &str, value: Value| relay.check_desired(&[(name.to_owned(), value)]);
    assert_eq!(wish("relay", Value::Bool(true)), Ok(vec![(Arc::from("on"), Value::Bool(true))]));
    assert!(matches!(wish("on", Value::Text("perhaps".to_owned())), Err(Mismatch::WrongType { .. })));
    assert!(matches!(wish("power", Value::Int(3)), Err(Mismatch::ReadOnly { .. })));
    assert!(matches!(wish("colour", Value::Int(3)), Err(Mismatch::Unknown { .. })));
    let open = shipped("generic");
    assert_eq!(open.check_desired(&[("x".to_owned(), Value::Int(3))]), Ok(vec![(Arc::from("x"), Value::Int(3))]));
}
