//! The console page with a gateway or a network that leaves it waiting.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sluicegate_tests::{Browser, Gateway, Options, PATIENCE, artifacts, shell, wait_for};

/// What the pill says that tells how things stand.
fn until_it_says(browser: &Browser, words: &str) {
    let script = format!("return document.getElementById('link').textContent === '{words}'");
    browser.until(words, PATIENCE, &script);
}

#[test]
fn the_page_goes_on_when_an_answer_never_comes() {
    let gateway = Gateway::start(Options::default());
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{}/", gateway.options.admin));
    until_it_says(&browser, "live");

    // One question of one round is lost for good, as on a line that was cut in the middle.
    browser.run(
        "const real = window.fetch; window.lost = 0; window.asked = 0; window.fetch = (path, options) => {
           if (path !== '/api/v1/store') return real(path, options);
           if (window.lost) { window.asked += 1; return real(path, options); }
           window.lost = 1;
           return new Promise((_, fail) => options.signal?.addEventListener('abort', () => fail(options.signal.reason)));
         };",
    );
    browser.until("the lost question", PATIENCE, "return window.lost === 1");
    let before = browser.run("return document.getElementById('uptime').textContent");
    let script = format!("return window.asked > 1 && document.getElementById('uptime').textContent !== {before}");
    browser.until("the page to go on", Duration::from_secs(15), &script);
    until_it_says(&browser, "live");

    // A gateway that is there and says nothing at all, and then goes on.
    gateway.child.signal(Signal::STOP);
    until_it_says(&browser, "gateway does not answer");
    gateway.child.signal(Signal::CONT);
    until_it_says(&browser, "live");
    drop(browser);
    gateway.stop();
}

#[test]
fn a_thing_shows_what_it_is_to_have_and_the_commands_that_wait_for_it() {
    let relay = "[[device]]\nid = \"relay-1\"\nproduct = \"relay-switch\"\n";
    let gateway = Gateway::start(Options::default().with(relay));
    let lines =
        format!("printf '{{\"device\":\"relay-1\",\"on\":false}}\\n' | nc -q 1 127.0.0.1 {}", gateway.options.tcp);
    shell(&lines);
    wait_for("the relay to be away again", PATIENCE, || {
        let thing: Value = serde_json::from_str(&gateway.get("/api/v1/things/relay-1")).unwrap();
        (thing["online"] == false && thing["seen_us"] != 0).then_some(())
    });
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{}/", gateway.options.admin));
    until_it_says(&browser, "live");
    let part = "const part = document.querySelector('[data-thing=\"relay-1\"] details');";
    browser.until("the card", PATIENCE, &format!("{part} return part !== null && part.hidden"));

    let path = "/api/v1/things/relay-1";
    assert_eq!(gateway.request("PATCH", &format!("{path}/shadow"), r#"{"desired":{"on":true}}"#).0, 200);
    for action in ["toggle", "pulse"] {
        let input = if action == "pulse" { r#"{"duration":20}"# } else { "" };
        assert_eq!(gateway.request("POST", &format!("{path}/actions/{action}"), input).0, 202);
    }
    let summary =
        format!("{part} return part.querySelector('summary').textContent === 'shadow, version 1 · 2 commands wait'");
    browser.until("the summary", PATIENCE, &summary);
    browser.run(&format!("{part} part.querySelector('summary').click()"));
    let row = format!(
        "{part} return [...part.querySelectorAll('[data-desired=on] th, [data-desired=on] td')].map((cell) => cell.textContent).join() === 'on,yes,nodiffers'"
    );
    browser.until("desired, reported and the difference", PATIENCE, &row);
    browser.until("the commands", PATIENCE, &format!("{part} const all = [...part.querySelectorAll('li')].map((line) => line.firstChild.textContent); return all.join() === 'toggle,pulse {{\"duration\":20}}'"));
    browser.run(&format!("{part} part.scrollIntoView({{ block: 'center' }})"));
    browser.screenshot(&artifacts().join("shadow.png"));

    browser.run(&format!("{part} part.querySelector('li button').click()"));
    browser.until("one to be taken back", PATIENCE, &format!("{part} return part.querySelectorAll('li').length === 1"));
    let errors: Vec<String> = browser.console().into_iter().filter(|line| line.starts_with("SEVERE")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    drop(browser);
    gateway.stop();
}
