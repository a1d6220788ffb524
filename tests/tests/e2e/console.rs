//! The console page with a gateway or a network that leaves it waiting.

use std::time::Duration;

use rustix::process::Signal;
use sluicegate_tests::{Browser, Gateway, Options, PATIENCE};

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
