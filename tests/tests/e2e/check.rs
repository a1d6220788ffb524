//! The command line and the configuration, as a user meets them.

use sluicegate_tests::{binary, run, run_ok};
use tempfile::TempDir;

fn sluicegate(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(&binary().display().to_string(), arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_names_every_verb() {
    let (code, out, _) = sluicegate(&["help"]);
    assert_eq!(code, Some(0));
    for verb in ["run", "check", "demo", "store", "receive", "help"] {
        assert!(out.contains(&format!("\n  {verb} ")), "{out}");
    }
}

#[test]
fn bad_usage_is_2() {
    assert_eq!(sluicegate(&["walk"]).0, Some(2));
    assert_eq!(sluicegate(&["run", "--nope"]).0, Some(2));
}

#[test]
fn the_example_passes_check() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sluicegate.toml");
    let (code, example, _) = sluicegate(&["check", "--example"]);
    assert_eq!(code, Some(0));
    std::fs::write(&file, example).unwrap();
    let out = run_ok(&binary().display().to_string(), &["check", "--config", &file.display().to_string()]);
    assert!(out.contains("well"), "{out}");
}

#[test]
fn check_prints_all_errors_at_once_with_file_line_and_key() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sluicegate.toml");
    let text = "[store]\ncommit_ms = 5000\nkap = 1\n[[adapter]]\nname = \"a\"\nlisten = \"tcp://0.0.0.0:1\"\nprotocol = \"mqtt\"\n";
    std::fs::write(&file, text).unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    std::fs::write(folder.path().join("conf.d/10-more.toml"), "[[device]]\nid = \"x\"\n").unwrap();
    let (code, _, first) = sluicegate(&["check", "--config", &file.display().to_string()]);
    assert_eq!(code, Some(2), "{first}");
    assert!(first.contains("sluicegate.toml:3: store.kap: unknown field"), "{first}");
    assert!(first.contains("10-more.toml:1: device[0]: missing field `product`"), "{first}");

    // With the shape right, the values are looked at: again all of them.
    std::fs::write(&file, text.replace("kap = 1\n", "")).unwrap();
    let device = "[[device]]\nid = \"x\"\nproduct = \"toaster\"\n";
    std::fs::write(folder.path().join("conf.d/10-more.toml"), device).unwrap();
    let (code, _, then) = sluicegate(&["check", "--config", &file.display().to_string()]);
    assert_eq!(code, Some(2), "{then}");
    assert!(then.contains("sluicegate.toml:2: store.commit_ms: 5000 is out of range: 0 to 1000 ms"), "{then}");
    assert!(then.contains("sluicegate.toml:5: adapter[0].listen:") && then.contains("allow_anonymous"), "{then}");
    assert!(then.contains("10-more.toml:3: device[0].product: there is no model `toaster`"), "{then}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sluicegate.toml");
    let state = folder.path().join("state").display().to_string();
    let text = format!(
        "[store]\npath = \"{state}\"\n[admin]\nlisten = \"\"\n[[adapter]]\nname = \"door\"\nlisten = \"tcp://127.0.0.1:{port}\"\n\
         protocol = \"mqtt\"\nallow_anonymous = true\n"
    );
    std::fs::write(&file, text).unwrap();
    let (code, _, error) = sluicegate(&["run", "--config", &file.display().to_string()]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("adapter `door`") && error.contains(&port.to_string()), "{error}");
}
