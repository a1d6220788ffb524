//! Sparkplug's rules by the ids that the specification's own test kit gives them, and the examples of the documentation.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use device_models::model::Model;
use device_models::wire::Hole;
use device_models::{Level, Quality};

use super::super::golden::{self, SCOPE, TIME_US, documented, event, gap, message, presence, reply, report, sample};
use super::*;
use crate::devices::Latest;

fn node(primary_host: &str) -> Sparkplug {
    let mut node =
        Sparkplug::new(&config::Sparkplug { primary_host: primary_host.to_owned(), ..config::Sparkplug::default() });
    begin(&mut node, 3);
    node
}

fn begin(node: &mut Sparkplug, session: u64) {
    node.begin(Beginning { session, now_us: TIME_US, files: &[] }).unwrap();
}

fn cut(messages: Vec<Message>, hist: bool) -> Cut {
    Cut { messages: (1..).zip(messages).collect(), holes: Vec::new(), hist }
}

/// Everything that a cut becomes, as it goes to the wire.
fn sent(node: &mut Sparkplug, messages: Vec<Message>, hist: bool, online: bool) -> (Vec<Publication>, Said) {
    let find = |id: &str| Some(Known { online, ..if id == "meter-1" { golden::meter() } else { golden::relay() } });
    let around = node.around(SCOPE, TIME_US, &cut(messages.clone(), hist), &find);
    let class = messages.first().map_or(Class::Live, Message::class);
    let said = golden::said(node, class, hist, messages, &[]);
    let mut all = around.before;
    all.extend(said.publications.iter().cloned());
    all.extend(around.after);
    (departed(node, all), said)
}

fn departed(node: &mut Sparkplug, mut all: Vec<Publication>) -> Vec<Publication> {
    for publication in &mut all {
        node.depart(publication);
    }
    all
}

/// Kind of message, device, sequence number.
fn kinds(all: &[Publication]) -> Vec<(String, u64)> {
    let kind = |publication: &Publication| {
        let levels: Vec<&str> = publication.topic.split('/').collect();
        (levels[2].to_owned(), Payload::decode(&*publication.payload).unwrap().seq.unwrap_or(999))
    };
    all.iter().map(kind).collect()
}

fn metrics(publication: &Publication) -> Vec<Metric> {
    Payload::decode(&*publication.payload).unwrap().metrics
}

fn metric(publication: &Publication, name: &str) -> Metric {
    let found = metrics(publication).into_iter().find(|metric| metric.name.as_deref() == Some(name));
    found.unwrap_or_else(|| panic!("{name} is not in {:#?}", metrics(publication)))
}

fn birth(node: &mut Sparkplug) -> Vec<Publication> {
    let mut all = node.open(SCOPE, TIME_US).publications;
    all.extend(node.introduce(SCOPE, TIME_US, &golden::meter()).publications);
    departed(node, all)
}

/// tck-id-topics-nbirth-seq-num, -payloads-sequence-num-incrementing, -principles-rbe, -topics-nbirth-metrics,
/// -topics-nbirth-bdseq-matching, -payloads-ndeath-will-message-qos, -payloads-ndeath-seq.
#[test]
fn a_node_is_born_with_number_zero_and_the_bd_seq_of_its_will() {
    let mut node = node("");
    for session in [0, 255, 256, 1000] {
        begin(&mut node, session);
        let run = Run { now_us: TIME_US, since_us: 0, epoch: 0 };
        let will = node.station(SCOPE, run).unwrap().offline;
        assert_eq!(
            (will.topic.as_str(), will.retain, will.at_most_once),
            ("spBv1.0/sluicegate/NDEATH/box-1", false, false)
        );
        assert_eq!(Payload::decode(&*will.payload).unwrap().seq, None);
        let born = birth(&mut node);
        assert_eq!(kinds(&born), [("NBIRTH".to_owned(), 0), ("DBIRTH".to_owned(), 1)]);
        assert!(born.iter().all(|birth| birth.at_most_once && !birth.retain));
        let expected = Some(Datum::Long(session % 256));
        assert_eq!((metric(&born[0], "bdSeq").value, metric(&will, "bdSeq").value), (expected.clone(), expected));
        let rebirth = metric(&born[0], REBIRTH);
        assert_eq!((rebirth.alias, rebirth.value), (None, Some(Datum::Boolean(false))), "it has no alias");
    }
}

/// tck-id-payloads-alias-uniqueness, -payloads-name-birth-data-requirement, -payloads-alias-data-cmd-requirement.
#[test]
fn aliases_are_unique_over_the_node_and_stand_alone_in_data() {
    let mut node = node("");
    let mut births = birth(&mut node);
    births.extend(node.introduce(SCOPE, TIME_US, &golden::relay()).publications);
    let all: Vec<Metric> = births.iter().flat_map(metrics).collect();
    assert!(all.iter().all(|metric| metric.name.is_some() && metric.datatype.is_some() && metric.timestamp.is_some()));
    let aliases: Vec<u64> = all.iter().filter_map(|metric| metric.alias).collect();
    assert_eq!(aliases.len(), aliases.iter().collect::<HashSet<_>>().len(), "{aliases:?}");
    let (data, said) = sent(&mut node, vec![report(), report()], false, true);
    assert_eq!(said.left_out, []);
    assert_eq!(kinds(&data), [("DDATA".to_owned(), 2)], "both reports in one");
    let said = metrics(&data[0]);
    assert_eq!(said.len(), 4);
    assert!(said.iter().all(|metric| metric.name.is_none() && metric.datatype.is_none() && metric.timestamp.is_some()));
    assert_eq!(said[0].alias, metric(&births[1], "power").alias);
    let bad = said[1].properties.as_ref().unwrap();
    assert_eq!((bad.keys.as_slice(), bad.values[0].int), (["Quality".to_owned()].as_slice(), Some(0)), "out of range");
}

/// tck-id-payloads-dbirth-edge-node-descriptor: a birth has all metrics, with their present values.
#[test]
fn a_device_is_born_with_the_values_it_has() {
    let mut node = node("");
    let latest = Latest { value: Value::Float(12.5), quality: Quality::Good, time_us: TIME_US - 9_000_000 };
    let known = Known { latest: BTreeMap::from([(Arc::from("power"), latest)]), ..golden::meter() };
    let born = node.introduce(SCOPE, TIME_US, &known).publications;
    let power = metric(&born[0], "power");
    assert_eq!(power.timestamp, Some(milliseconds(TIME_US) - 9_000));
    assert!(matches!(power.value, Some(Datum::Double(12.5) | Datum::Float(12.5))), "{power:?}");
    assert_eq!(metric(&born[0], "voltage").is_null, Some(true));
    assert_eq!(node.introduce(SCOPE, TIME_US, &Known { online: false, ..golden::meter() }), Said::default());
}

#[test]
fn the_number_goes_on_and_around_and_nothing_that_does_not_leave_takes_one() {
    let mut node = node("");
    birth(&mut node);
    let numbers: Vec<u64> =
        (0..600).flat_map(|_| kinds(&sent(&mut node, vec![report()], false, true).0)).map(|k| k.1).collect();
    assert_eq!(numbers, (0..600).map(|n| (n + 2) % 256).collect::<Vec<_>>());
    // Encoded and never handed over.
    golden::said(&node, Class::Live, false, vec![report()], &[]);
    assert_eq!(kinds(&sent(&mut node, vec![report()], false, true).0)[0].1, 602 % 256);
}

/// tck-id-operational-behavior-data-commands-rebirth-*: the same bdSeq, number zero, everything again.
#[test]
fn a_rebirth_is_asked_for_and_begins_at_zero() {
    let mut node = node("");
    let before = birth(&mut node);
    let ask = |name: &str, on: bool| {
        let metric = Metric { name: Some(name.to_owned()), value: Some(Datum::Boolean(on)), ..Metric::default() };
        Payload { timestamp: Some(1), metrics: vec![metric], seq: None }.encode_to_vec()
    };
    let topic = "spBv1.0/sluicegate/NCMD/box-1";
    assert_eq!(node.hear(SCOPE, topic, &ask(REBIRTH, true), 7), Heard::Introduce);
    assert!(matches!(node.hear(SCOPE, topic, &ask(REBIRTH, false), 7), Heard::Unreadable(_)));
    assert!(matches!(node.hear(SCOPE, topic, &ask("Node Control/Reboot", true), 7), Heard::Unreadable(_)));
    assert!(matches!(node.hear(SCOPE, topic, b"\xff", 7), Heard::Unreadable(_)));
    let again = birth(&mut node);
    assert_eq!(kinds(&again), kinds(&before));
    assert_eq!(metric(&again[0], "bdSeq"), metric(&before[0], "bdSeq"));
    let aliases = |births: &[Publication]| metrics(&births[1]).iter().map(|m| m.alias).collect::<Vec<_>>();
    assert_eq!(aliases(&again), aliases(&before), "what is under way is understood after it");
}

/// tck-id-operational-behavior-primary-application-state-with-multiple-servers-*, -edge-node-termination-host-offline*.
#[test]
fn the_primary_host_is_waited_for_and_left_when_it_goes() {
    let mut node = node("scada");
    assert!(node.filters(SCOPE).contains(&"spBv1.0/STATE/scada".to_owned()));
    assert!(node.waits().is_some_and(|wait| wait.most.is_none()) && !node.introduces());
    let state = |node: &mut Sparkplug, online: bool, timestamp: i64| {
        let payload = json!({ "online": online, "timestamp": timestamp }).to_string();
        node.hear(SCOPE, "spBv1.0/STATE/scada", payload.as_bytes(), 7)
    };
    assert_eq!(state(&mut node, false, 100), Heard::Nothing, "kept by the broker: it is not there yet");
    assert_eq!(state(&mut node, true, 200), Heard::Introduce);
    assert!(node.waits().is_none() && node.introduces());
    assert_eq!(state(&mut node, true, 300), Heard::Nothing);
    assert_eq!(state(&mut node, false, 250), Heard::Nothing, "an older connection's death comes late");
    assert!(matches!(state(&mut node, false, 300), Heard::Leave(_)));
    assert!(matches!(node.hear(SCOPE, "spBv1.0/STATE/scada", b"OFFLINE", 7), Heard::Unreadable(_)));
    begin(&mut node, 4);
    assert!(node.waits().is_some());
}

/// tck-id-payloads-ddeath-*, -operational-behavior-device-*: no data of a device that is not born.
#[test]
fn devices_come_and_go_and_what_a_gone_one_left_is_said_between_its_birth_and_death() {
    let mut node = node("");
    birth(&mut node);
    let kinds_of = |all: &[Publication]| kinds(all).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    let (gone, _) = sent(&mut node, vec![presence(false)], false, false);
    assert_eq!(kinds_of(&gone), ["DDEATH"]);
    assert_eq!(kinds_of(&sent(&mut node, vec![presence(false)], false, false).0), [""; 0], "it was not there");
    let (late, _) = sent(&mut node, vec![report()], true, false);
    assert_eq!(kinds_of(&late), ["DBIRTH", "DDATA", "DDEATH"]);
    assert!(metrics(&late[1]).iter().all(|metric| metric.is_historical == Some(true)));
    assert_eq!(kinds_of(&sent(&mut node, vec![presence(true)], false, true).0), ["DBIRTH"]);
    assert_eq!(kinds_of(&sent(&mut node, vec![presence(false), presence(true)], false, true).0), ["DDEATH", "DBIRTH"]);
    // What was before this connection is in its births.
    let (none, said) = sent(&mut node, vec![presence(false)], true, true);
    assert_eq!((none.len(), said.left_out), (0, vec![("superseded", 1)]));
}

#[test]
fn a_name_that_no_model_has_is_born_before_its_first_value() {
    let mut node = node("");
    birth(&mut node);
    let odd = |value: Value| message(Body::Properties(vec![sample(0, "level", value, Quality::UnknownProperty)]));
    let (all, _) = sent(&mut node, vec![odd(Value::Int(1)), odd(Value::Float(1.5))], false, true);
    assert_eq!(kinds(&all).len(), 2);
    let (born, data) = (metric(&all[0], "level"), metrics(&all[1]));
    assert_eq!((born.datatype, data.len(), &data[1].value), (Some(10), 2, &Some(Datum::Double(1.5))));
    assert_eq!(data[0].alias, born.alias);
    let (again, _) = sent(&mut node, vec![odd(Value::Int(2))], false, true);
    assert_eq!(kinds(&again), [("DDATA".to_owned(), 4)], "known now");
    let (_, said) = sent(&mut node, vec![odd(Value::Text("full".to_owned()))], false, true);
    assert_eq!(said.left_out, [("wrong-type", 1)]);
}

#[test]
fn what_is_gone_is_the_nodes_metric() {
    let mut node = node("");
    birth(&mut node);
    let hole = Hole { first: 4, count: 2, reason: "torn".to_owned() };
    let said = golden::said(&node, Class::Control, false, vec![gap()], &[hole]);
    let texts: Vec<_> =
        said.publications.iter().map(|one| (one.topic.as_str(), metrics(one)[0].value.clone())).collect();
    let text = |text: &str| ("spBv1.0/sluicegate/NDATA/box-1", Some(Datum::Text(text.to_owned())));
    assert_eq!(
        texts,
        [
            text(r#"{"class":"live","first":3,"last":9,"reason":"cap"}"#),
            text(r#"{"class":"ctl","first":4,"last":5,"reason":"torn"}"#),
        ]
    );
}

#[test]
fn commands_by_name_or_alias_become_orders_and_their_end_is_said() {
    let mut node = node("");
    let born = node.introduce(SCOPE, TIME_US, &golden::relay()).publications;
    let (on, toggle) = (metric(&born[0], "on"), metric(&born[0], "Actions/toggle"));
    let command = |node: &mut Sparkplug, metrics: Vec<Metric>| {
        let payload = Payload { timestamp: Some(1), metrics, seq: None }.encode_to_vec();
        match node.hear(SCOPE, "spBv1.0/sluicegate/DCMD/box-1/relay-1", &payload, 7) {
            Heard::Command { thing, command, .. } if thing == "relay-1" => command,
            other => panic!("{other:?}"),
        }
    };
    let set = |name: Option<&str>, alias: Option<u64>| Metric {
        name: name.map(str::to_owned),
        alias,
        value: Some(Datum::Boolean(true)),
        ..Metric::default()
    };
    for metric in [set(Some("on"), None), set(None, on.alias), set(Some("on"), on.alias)] {
        let command = command(&mut node, vec![metric]).unwrap();
        assert_eq!(
            (command.id.as_str(), command.order),
            ("platform:7:on", Order::Write(vec![("on".to_owned(), Value::Bool(true))]))
        );
    }
    for metric in [set(Some("Actions/toggle"), None), set(None, toggle.alias)] {
        let order = command(&mut node, vec![metric]).unwrap().order;
        assert_eq!(order, Order::Invoke { action: "toggle".to_owned(), input: Value::Null });
    }
    for wrong in [vec![], vec![set(None, Some(12))], vec![set(Some("on"), None), set(None, toggle.alias)]] {
        assert!(command(&mut node, wrong).is_err());
    }
    let refused = Message { thing: "relay-1".into(), ..reply("platform:7:on", golden::silent()) };
    let (all, _) = sent(
        &mut node,
        vec![refused, Message { thing: "relay-1".into(), ..reply("b:7:on", golden::silent()) }],
        false,
        true,
    );
    let expected = r#"{"command":"on","error":"the device did not answer within 10s","success":false}"#;
    assert_eq!((all.len(), metrics(&all[0])[0].value.clone()), (1, Some(Datum::Text(expected.to_owned()))));
    let waits = Message { thing: "relay-1".into(), ..reply("platform:7:on", golden::waiting()) };
    let (all, _) = sent(&mut node, vec![waits], false, true);
    let expected = r#"{"command":"on","waits_seconds":60}"#;
    assert_eq!((all.len(), metrics(&all[0])[0].value.clone()), (1, Some(Datum::Text(expected.to_owned()))));
}

#[test]
fn every_type_of_a_model_goes_there_and_back() {
    let types = [
        ("i8", -1),
        ("i16", -2),
        ("i32", -3),
        ("i64", -4),
        ("u8", 200),
        ("u16", 60_000),
        ("u32", 4_000_000_000),
        ("u64", 5),
    ];
    let property = |(name, _): &(&str, i64)| format!(r#""{name}":{{"type":"integer","sg:dataType":"{name}"}}"#);
    let text = format!(
        r#"{{"@context":"https://www.w3.org/2022/wot/td/v1.1","@type":"tm:ThingModel","title":"t","properties":{{{}}}}}"#,
        types.iter().map(property).collect::<Vec<_>>().join(",")
    );
    let model = Arc::new(Model::parse("t.tm.json", &text).unwrap());
    let known = Known { id: "t".into(), model: Arc::clone(&model), online: true, latest: BTreeMap::new() };
    let mut node = node("");
    let born = node.introduce(SCOPE, TIME_US, &known).publications;
    for ((name, number), datatype) in types.iter().zip(1..) {
        assert_eq!(metric(&born[0], name).datatype, Some(datatype), "{name}");
        let said = datum(datatype, &Value::Int(*number)).unwrap();
        assert_eq!(value(datatype, Some(&said), true), Value::Int(*number), "{name}");
    }
    assert_eq!(datum(1, &Value::Int(128)), None);
    assert_eq!(datum(1, &Value::Int(-1)), Some(Datum::Int(255)), "in the width of the type");
    assert_eq!(value(9, Some(&Datum::Float(0.1)), true), Value::Float(0.1));
}

#[test]
fn sparkplug_is_documented() {
    let mut node = node("");
    let run = Run { now_us: TIME_US, since_us: 0, epoch: 0 };
    let mut all = vec![node.station(SCOPE, run).unwrap().offline];
    all.extend(birth(&mut node));
    all.extend(sent(&mut node, vec![report()], true, true).0);
    all.extend(sent(&mut node, vec![event()], false, true).0);
    all.extend(sent(&mut node, vec![reply("platform:7:on", Ok(Value::Bool(true)))], false, true).0);
    let holes = golden::said(&node, Class::Control, false, vec![gap()], &[]).publications;
    all.extend(departed(&mut node, holes));
    all.extend(sent(&mut node, vec![presence(false)], false, false).0);
    let readable = |publication: &Publication| {
        let payload = Payload::decode(&*publication.payload).unwrap();
        let mut text = payload.seq.map_or_else(|| "no seq".to_owned(), |seq| format!("seq {seq}"));
        for Metric { name, alias, datatype, is_historical, properties, value, .. } in payload.metrics {
            write!(text, "\n      {}", name.unwrap_or_else(|| "-".to_owned())).unwrap();
            let alias = alias.map(|alias| format!(" alias {alias:#x}"));
            let datatype = datatype.map(|datatype| format!(" type {datatype}"));
            let hist = is_historical.map(|_| " historical".to_owned());
            let set = properties.map(|set| format!(" {}", set.keys.join(" ")));
            text.extend([alias, datatype, hist, set].into_iter().flatten());
            write!(text, "{}", value.map_or_else(|| " null".to_owned(), |value| format!(" {value:?}"))).unwrap();
        }
        Publication { payload: text.into_bytes(), ..publication.clone() }
    };
    documented(&node, &all.iter().map(readable).collect::<Vec<_>>());
}

#[test]
fn loud_and_quiet_events_are_metrics_of_their_names() {
    let mut node = node("");
    birth(&mut node);
    let unknown = message(Body::Event {
        name: "smoke".into(),
        level: Level::Urgent,
        data: Value::Null,
        quality: Quality::UnknownProperty,
    });
    let (all, _) = sent(&mut node, vec![unknown], false, true);
    assert_eq!(metric(&all[0], "Events/smoke").alias, metrics(&all[1])[0].alias);
    assert_eq!(metrics(&all[1])[0].value, Some(Datum::Text(r#"{"data":null,"level":"urgent"}"#.to_owned())));
}
