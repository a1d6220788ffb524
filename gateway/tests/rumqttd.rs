//! The second routing core, chosen by configuration, with real clients on a real port.

#![cfg(feature = "rumqttd")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use gateway::app::App;
use gateway::config::load::load_text;
use gateway::config::plan::Plan;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttd_carries_between_real_clients() {
    let state = tempfile::tempdir().unwrap();
    let text = format!(
        "[gateway]\nid = \"test\"\n[store]\npath = \"{}\"\n[admin]\nlisten = \"\"\n[broker]\ncore = \"rumqttd\"\n\
         [[adapter]]\nname = \"a\"\nlisten = \"tcp://127.0.0.1:0\"\nprotocol = \"mqtt\"\n\
         allow_anonymous = true\n",
        state.path().display()
    );
    let app = App::start(Plan::make(load_text("test.toml", &text).unwrap()).unwrap()).await.unwrap();
    let port = app.bound[0].1.unwrap().port().to_string();

    let mut listener = Command::new("stdbuf")
        .args(["-oL", "mosquitto_sub", "-d", "-V", "5", "-p", &port, "-q", "1", "-t", "设备/#", "-t", "a/+", "-C", "4"])
        .args(["-W", "30", "-F", "GOT %t %q %p"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mosquitto_sub");
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("Subscribed")));
    let sent = [("设备/1", "0", "5"), ("设备/1", "1", "311"), ("a/1", "1", "5"), ("a/2", "0", "311")];
    for (topic, qos, version) in sent {
        let payload = format!("{topic}-{qos}");
        let publish = ["-p", &port, "-V", version, "-q", qos, "-t", topic, "-m", &payload];
        assert!(Command::new("mosquitto_pub").args(publish).status().expect("mosquitto_pub").success());
    }
    let mut got: Vec<_> = lines.filter(|line| line.starts_with("GOT")).collect();
    got.sort();
    let mut expected: Vec<_> = sent.map(|(topic, qos, _)| format!("GOT {topic} {qos} {topic}-{qos}")).into();
    expected.sort();
    assert_eq!(got, expected);
    assert!(listener.wait().unwrap().success());
    assert_eq!(app.services.broker.stat().carried, 4, "by rumqttd's router");
    app.stop().await;
}
