//! A Kafka cluster: librdkafka's own mock brokers, read with kcat. Both are Debian's.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Authority, Child, run_ok};

/// Two brokers. `kafka.py` beside this file explains what it can be told.
#[derive(Debug)]
pub struct KafkaCluster {
    /// `HOST:PORT` of each, with commas between.
    pub places: String,
    _child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    _folder: TempDir,
}

/// A record as kcat tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KafkaRecord {
    pub partition: i64,
    pub offset: i64,
    pub key: String,
    /// `name=value`, in the order of their names.
    pub headers: Vec<String>,
    pub payload: String,
}

impl KafkaCluster {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Behind TLS, for those who have a certificate of the authority's.
    pub fn with_tls(authority: &Authority) -> Self {
        let own = authority.certify("kafka");
        let files = [own.cert, own.key, authority.file()].map(|file| file.display().to_string());
        Self::with(&["--tls", &files[0], &files[1], &files[2]])
    }

    /// Behind SASL, for this name and password alone.
    pub fn with_sasl(mechanism: &str, name: &str, password: &str) -> Self {
        Self::with(&["--sasl", mechanism, name, password])
    }

    fn with(more: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let script = folder.path().join("kafka.py");
        std::fs::write(&script, include_str!("kafka.py")).expect("its script");
        let mut command = Command::new("python3");
        command.arg(&script).args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Child::start(&mut command);
        let orders = child.inner.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.inner.stdout.take().expect("piped"));
        let mut places = String::new();
        answers.read_line(&mut places).expect("its brokers");
        assert!(places.contains(':'), "the mock cluster does not start (kcat brings its library)");
        Self { places: places.trim().to_owned(), _child: child, orders, answers, _folder: folder }
    }

    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("to tell it");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("its answer");
        assert_eq!(answer.trim(), "ok", "{order}");
    }

    /// Everything that is in a topic by now, partition by partition. `more`: options of kcat's.
    pub fn read(&self, topic: &str, more: &[&str]) -> Vec<KafkaRecord> {
        let common = ["-C", "-b", &self.places, "-t", topic, "-o", "beginning", "-e", "-q", "-J"];
        let told = run_ok("kcat", &[&common[..], more].concat());
        let mut records: Vec<_> = told.lines().map(record).collect();
        records.sort();
        records
    }
}

fn record(line: &str) -> KafkaRecord {
    let told: Value = serde_json::from_str(line).expect("kcat's JSON");
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    let headers: Vec<&str> = told["headers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut headers: Vec<String> = headers.chunks(2).map(|pair| pair.join("=")).collect();
    headers.sort();
    let number = |key: &str| told[key].as_i64().unwrap_or(-1);
    KafkaRecord {
        partition: number("partition"),
        offset: number("offset"),
        key: text("key"),
        headers,
        payload: text("payload"),
    }
}
