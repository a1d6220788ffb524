//! Kafka as a destination: what stands in its topics, by librdkafka's own brokers and kcat.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use sluicegate_tests::{
    Authority, Certificate, Gateway, KafkaCluster, KafkaRecord, Options, PATIENCE, shell, wait_for,
};

fn to(places: &str, topic: &str, more: &str) -> Options {
    let url = format!("kafka://{places}/{topic}");
    Options::default().with(&format!("[[upstream]]\nname = \"up\"\nurl = \"{url}\"\nbatch_ms = 20\n{more}"))
}

/// Reports of a thing, over one connection.
fn report(gateway: &Gateway, device: &str, range: std::ops::RangeInclusive<u64>) {
    let lines: Vec<_> = range.map(|n| json!({ "properties": { "n": n } }).to_string()).collect();
    let file = gateway.folder.path().join("lines");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (port, file) = (gateway.options.mqtt, file.display());
    shell(&format!("mosquitto_pub -p {port} -q 1 -i {device} -t /generic/{device}/properties/report -l < {file}"));
}

fn linked(gateway: &Gateway) {
    let up = "sluicegate_link_up{upstream=\"up\"}";
    wait_for("the connection", PATIENCE, || (gateway.metric(up) > 0.5).then_some(()));
}

fn body(record: &KafkaRecord) -> Value {
    serde_json::from_str(&record.payload).unwrap_or_default()
}

/// The values of `n` of a thing, in the order they stand in.
fn numbers(records: &[KafkaRecord], thing: &str) -> Vec<u64> {
    let mine = records.iter().filter(|record| record.key == thing);
    mine.filter_map(|record| body(record)["properties"]["n"].as_u64()).collect()
}

/// The topic's records, once the things have come up to these values.
fn until(cluster: &KafkaCluster, topic: &str, last: &[(&str, u64)]) -> Vec<KafkaRecord> {
    wait_for("the records", PATIENCE * 2, || {
        let records = cluster.read(topic, &[]);
        let there = last.iter().all(|(thing, n)| numbers(&records, thing).contains(n));
        there.then_some(records)
    })
}

#[test]
fn records_are_keyed_by_thing_named_by_headers_and_lie_where_kafkas_clients_look_for_them() {
    let mut cluster = KafkaCluster::start();
    cluster.tell("create fleet 8");
    let gateway = Gateway::start(to(&cluster.places, "fleet", "dialect = \"json\""));
    for thing in ["meter-1", "meter-2", "lamp/3"] {
        report(&gateway, thing.rsplit('/').next().unwrap(), 1..=20);
    }
    let records = until(&cluster, "fleet", &[("meter-1", 20), ("meter-2", 20), ("3", 20)]);
    for thing in ["meter-1", "meter-2", "3"] {
        assert_eq!(numbers(&records, thing), (1..=20).collect::<Vec<_>>(), "{thing}");
    }
    for record in records.iter().filter(|record| body(record)["properties"].is_object()) {
        let said = body(record);
        let headers = [
            format!("sluicegate-class={}", said["class"].as_str().unwrap()),
            format!("sluicegate-epoch={}", said["epoch"].as_str().unwrap()),
            "sluicegate-gateway=gate-t".to_owned(),
            format!("sluicegate-seq={}", said["seq"]),
            format!("sluicegate-topic=sg/v1/gate-t/json/{}/properties", record.key),
        ];
        assert_eq!(record.headers, headers);
        assert_eq!(record.key, said["thing"].as_str().unwrap());
    }
    // Where librdkafka's murmur2 partitioner puts the same keys.
    let chosen: BTreeMap<String, i64> = records.iter().map(|one| (one.key.clone(), one.partition)).collect();
    cluster.tell("create theirs 8");
    for key in chosen.keys() {
        let (places, option) = (&cluster.places, "topic.partitioner=murmur2");
        shell(&format!("echo x | kcat -P -b {places} -t theirs -k '{key}' -X {option}"));
    }
    let theirs: BTreeMap<String, i64> =
        cluster.read("theirs", &[]).into_iter().map(|one| (one.key, one.partition)).collect();
    assert_eq!(chosen, theirs);
    assert!(chosen.values().collect::<BTreeSet<_>>().len() > 1, "{chosen:?}");
    gateway.stop();
}

#[test]
fn brokers_that_vanish_and_leaders_that_change_cost_no_record_and_no_order() {
    let mut cluster = KafkaCluster::start();
    cluster.tell("create fleet 4");
    let gateway = Gateway::start(to(&cluster.places, "fleet", "dialect = \"json\""));
    report(&gateway, "t-1", 1..=50);
    until(&cluster, "fleet", &[("t-1", 50)]);
    // Leaders change under way.
    for partition in 0..4 {
        cluster.tell(&format!("leader fleet {partition} 1"));
    }
    report(&gateway, "t-1", 51..=100);
    until(&cluster, "fleet", &[("t-1", 100)]);
    // All of the cluster is gone, and comes back with what it had.
    cluster.tell("down 1");
    cluster.tell("down 2");
    report(&gateway, "t-1", 101..=150);
    wait_for("that it says so", PATIENCE * 2, || {
        (gateway.metric("sluicegate_link_up{upstream=\"up\"}") < 0.5).then_some(())
    });
    cluster.tell("up 1");
    cluster.tell("up 2");
    let records = until(&cluster, "fleet", &[("t-1", 150)]);
    // What was under way may stand there twice, under the same name; each time in order, and nothing is missing.
    let mut told = numbers(&records, "t-1");
    assert!(told.windows(2).all(|pair| pair[1] <= pair[0] + 1), "a hole: {told:?}");
    told.sort_unstable();
    told.dedup();
    assert_eq!(told, (1..=150).collect::<Vec<_>>());
    let mut named: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
    for record in records {
        named.entry(record.headers).or_default().insert(record.payload);
    }
    assert!(named.values().all(|payloads| payloads.len() == 1), "one name, two records");
    gateway.stop();
}

#[test]
fn a_topic_that_is_missing_is_said_and_everything_waits_for_it() {
    let mut cluster = KafkaCluster::start();
    cluster.tell("without fleet");
    let gateway = Gateway::start(to(&cluster.places, "fleet", "dialect = \"json\""));
    report(&gateway, "t-1", 1..=10);
    wait_for("that it says what is missing", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("no topic `fleet`").then_some(())
    });
    cluster.tell("with fleet");
    let records = until(&cluster, "fleet", &[("t-1", 10)]);
    assert_eq!(numbers(&records, "t-1"), (1..=10).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn a_record_that_is_too_large_is_set_aside_and_the_rest_goes_on() {
    let mut cluster = KafkaCluster::start();
    let gateway = Gateway::start(to(&cluster.places, "fleet", "dialect = \"json\""));
    linked(&gateway);
    report(&gateway, "t-1", 1..=5);
    until(&cluster, "fleet", &[("t-1", 5)]);
    // MESSAGE_TOO_LARGE, for whatever comes next.
    cluster.tell("refuse 10 1");
    report(&gateway, "t-1", 6..=6);
    let refused = "sluicegate_dropped_total{reason=\"refused\"}";
    wait_for("that it is set aside", PATIENCE, || (gateway.metric(refused) > 0.5).then_some(()));
    report(&gateway, "t-1", 7..=10);
    let records = until(&cluster, "fleet", &[("t-1", 10)]);
    let aside = std::fs::read_to_string(gateway.folder.path().join("state/refused/up.jsonl")).unwrap();
    let kept: Value = serde_json::from_str(aside.trim()).expect("one message");
    let name = |said: &Value| (said["class"].clone(), said["seq"].clone());
    let told: BTreeSet<String> = records.iter().map(body).map(|said| format!("{:?}", name(&said))).collect();
    assert!(!told.contains(&format!("{:?}", name(&kept))), "{kept} came as well");
    let lost = kept["message"]["properties"]["n"].as_u64();
    let expected: Vec<u64> = (1..=10).filter(|n| Some(*n) != lost).collect();
    assert_eq!(numbers(&records, "t-1"), expected);
    let hole = records.iter().map(body).find(|said| said["gap"]["reason"].is_string()).expect("a gap that names it");
    assert!(hole["gap"]["reason"].as_str().unwrap().contains("MessageTooLarge"), "{hole}");
    assert_eq!((&hole["gap"]["class"], &hole["gap"]["first"]), (&kept["class"], &kept["seq"]), "{hole}");
    gateway.stop();
}

#[test]
fn native_batches_find_their_catalog_in_a_topic_of_its_own() {
    let cluster = KafkaCluster::start();
    let gateway = Gateway::start(to(&cluster.places, "fleet", ""));
    report(&gateway, "t-1", 1..=10);
    let batches = wait_for("a batch", PATIENCE, || {
        let records = cluster.read("fleet", &["-s", "value=b"]);
        let live = |record: &&KafkaRecord| record.headers.contains(&"sluicegate-class=live".to_owned());
        records.iter().any(|record| live(&record)).then_some(records)
    });
    assert!(batches.iter().all(|record| record.key == "gate-t"), "{batches:?}");
    let catalogs = cluster.read("fleet.model", &["-s", "value=b"]);
    assert!(catalogs.iter().all(|record| record.key.starts_with("sg/v1/gate-t/model/")), "{catalogs:?}");
    assert!(!catalogs.is_empty());
    gateway.stop();
}

#[test]
fn tls_goes_both_ways_and_an_unknown_authority_is_refused() {
    let authority = Authority::new();
    let cluster = KafkaCluster::with_tls(&authority);
    let Certificate { cert, key } = authority.certify("gate");
    let own = format!("cert_file = \"{}\"\nkey_file = \"{}\"", cert.display(), key.display());
    let up = |authority: &Authority, more: &str| {
        let ca = authority.file();
        let url = format!("kafka+tls://{}/fleet", cluster.places.replace("127.0.0.1", "localhost"));
        Options::default().with(&format!(
            "[[upstream]]\nname = \"up\"\nurl = \"{url}\"\ndialect = \"json\"\nca_file = \"{}\"\n{more}",
            ca.display()
        ))
    };
    let stranger = Authority::new();
    for (options, why) in
        [(up(&stranger, &own), "invalid peer certificate"), (up(&authority, ""), "CertificateRequired")]
    {
        let gateway = Gateway::start(options);
        report(&gateway, "t-1", 1..=2);
        wait_for(why, PATIENCE, || gateway.get("/api/v1/upstreams").contains(why).then_some(()));
        gateway.stop();
    }
    let gateway = Gateway::start(up(&authority, &own));
    report(&gateway, "t-1", 1..=10);
    let files = [cert, key, authority.file()].map(|file| file.display().to_string());
    let properties = ["security.protocol=ssl", "enable.ssl.certificate.verification=false"]
        .map(str::to_owned)
        .into_iter()
        .chain([
            format!("ssl.certificate.location={}", files[0]),
            format!("ssl.key.location={}", files[1]),
            format!("ssl.ca.location={}", files[2]),
        ])
        .flat_map(|property| ["-X".to_owned(), property]);
    let properties: Vec<String> = properties.collect();
    let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
    let records = wait_for("the records", PATIENCE, || {
        let records = cluster.read("fleet", &properties);
        numbers(&records, "t-1").contains(&10).then_some(records)
    });
    assert_eq!(numbers(&records, "t-1"), (1..=10).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn a_configuration_that_no_kafka_takes_is_refused_with_the_reason() {
    for (url, more, why) in [
        ("kafka://127.0.0.1:1/a/b", "dialect = \"json\"", "a topic has letters"),
        ("kafka://127.0.0.1:1/a", "dialect = \"thingsboard\"", "one of MQTT topics"),
        ("mqtt://127.0.0.1:1", "sasl = \"scram-sha-512\"", "only Kafka has it"),
        ("kafka://127.0.0.1:1", "token_file = \"/dev/null\"", "a name and a password"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sluicegate.toml");
        std::fs::write(&file, format!("[[upstream]]\nname = \"up\"\nurl = \"{url}\"\n{more}\n")).unwrap();
        let binary = sluicegate_tests::binary().display().to_string();
        let output = sluicegate_tests::run(&binary, &["check", "--config", &file.display().to_string()]);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains(why), "{url}: {said}");
    }
}

/// kcat, whose SASL is librdkafka's, goes in by the same door.
#[test]
fn brokers_that_want_a_proof_get_it_by_sasl() {
    for (sasl, mechanism) in MECHANISMS {
        let mut cluster = KafkaCluster::with_sasl(mechanism, "gate=t", "s=c ret");
        cluster.tell("create fleet 4");
        let folder = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(proving(&cluster, sasl, &folder.path().join("password"), "s=c ret"));
        report(&gateway, "meter-1", 1..=20);
        linked(&gateway);
        let records = until_proven(&cluster, mechanism, 20);
        assert_eq!(numbers(&records, "meter-1"), (1..=20).collect::<Vec<_>>(), "{mechanism}");
        gateway.stop();
    }
}

/// After a wrong proof each try takes ten seconds: the three of them side by side.
#[test]
fn a_wrong_password_is_said_by_place_and_mechanism_and_the_right_one_is_read_with_the_next_try() {
    let threads = MECHANISMS.map(|(sasl, mechanism)| {
        std::thread::spawn(move || {
            let mut cluster = KafkaCluster::with_sasl(mechanism, "gate=t", "s=c ret");
            cluster.tell("create fleet 4");
            let folder = tempfile::tempdir().unwrap();
            let password = folder.path().join("password");
            let gateway = Gateway::start(proving(&cluster, sasl, &password, "not this"));
            report(&gateway, "meter-1", 1..=20);
            let said = wait_for("why it is not let in", PATIENCE * 2, || {
                let upstreams: Value = serde_json::from_str(&gateway.get("/api/v1/upstreams")).unwrap();
                upstreams[0]["error"].as_str().map(str::to_owned)
            });
            let place = cluster.places.split(',').next().unwrap();
            let words = [place, &format!("SASL {mechanism} as `gate=t`"), "refuses", "wrong name or password"];
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert!(!said.contains("not this") && !gateway.log().contains("not this"), "the password is told");
            assert!(gateway.log().contains(&said), "the log says it too:\n{}", gateway.log());
            std::fs::write(&password, "s=c ret\n").unwrap();
            linked(&gateway);
            let records = until_proven(&cluster, mechanism, 20);
            assert_eq!(numbers(&records, "meter-1"), (1..=20).collect::<Vec<_>>(), "{mechanism}");
            gateway.stop();
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn brokers_that_know_another_mechanism_are_said_to() {
    let cluster = KafkaCluster::with_sasl("SCRAM-SHA-512", "gate=t", "s=c ret");
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(proving(&cluster, "scram-sha-256", &folder.path().join("password"), "s=c ret"));
    let why = "the broker does not take SASL SCRAM-SHA-256 as `gate=t`";
    wait_for(why, PATIENCE * 2, || gateway.get("/api/v1/upstreams").contains(why).then_some(()));
    gateway.stop();
}

/// Of the configuration, and as it is registered.
const MECHANISMS: [(&str, &str); 3] =
    [("plain", "PLAIN"), ("scram-sha-256", "SCRAM-SHA-256"), ("scram-sha-512", "SCRAM-SHA-512")];

fn proving(cluster: &KafkaCluster, sasl: &str, file: &Path, password: &str) -> Options {
    std::fs::write(file, format!("{password}\n")).unwrap();
    let file = file.display();
    let more = format!("dialect = \"json\"\nsasl = \"{sasl}\"\nusername = \"gate=t\"\npassword_file = \"{file}\"");
    to(&cluster.places, "fleet", &more)
}

/// What stands in the topic for one who can prove who he is, once `meter-1` has come so far.
fn until_proven(cluster: &KafkaCluster, mechanism: &str, last: u64) -> Vec<KafkaRecord> {
    let mechanism = format!("sasl.mechanism={mechanism}");
    let options = ["security.protocol=sasl_plaintext", &mechanism, "sasl.username=gate=t", "sasl.password=s=c ret"];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-X", option]).collect();
    wait_for("the records", PATIENCE, || {
        let records = cluster.read("fleet", &options);
        numbers(&records, "meter-1").contains(&last).then_some(records)
    })
}
