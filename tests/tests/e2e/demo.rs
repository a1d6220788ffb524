//! The demo as a stranger meets it: one command, a page, moving pictures, a clean end.

use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use sluicegate_tests::{Browser, Child, PATIENCE, artifacts, binary, run_ok};
use tempfile::TempDir;

/// The demo in a folder of its own; what it says, up to the line that it can be ended.
struct Demo {
    child: Child,
    words: std::sync::mpsc::Receiver<String>,
    page: String,
    said: String,
    _folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Two demos that start at one moment look for the same free ports.
static ALONE: Mutex<()> = Mutex::new(());

impl Demo {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(binary());
        command.arg("demo").arg("--dir").arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Child::start(&mut command);
        let stdout = child.inner.stdout.take().unwrap();
        let (sender, words) = std::sync::mpsc::sync_channel(1_000);
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let mut demo = Self { child, words, page: String::new(), said: String::new(), _folder: folder, _alone: alone };
        demo.hear("Ctrl-C ends it");
        let page = demo.said.lines().find_map(|l| l.trim().strip_prefix("Status page")).expect("the page's address");
        demo.page = page.trim().to_owned();
        demo
    }

    fn hear(&mut self, word: &str) {
        loop {
            let line = self.words.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no `{word}` in:\n{}", self.said));
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(word) {
                return;
            }
        }
    }

    /// Ctrl-C; how long it took to end.
    fn stop(mut self) -> (Duration, String) {
        let began = Instant::now();
        self.child.signal(Signal::INT);
        let status = self.child.wait(Duration::from_secs(10));
        let took = began.elapsed();
        while let Ok(line) = self.words.recv_timeout(Duration::from_millis(200)) {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        assert!(status.success(), "{status}: {}", self.said);
        (took, self.said.clone())
    }

    /// The printed command that begins like this.
    fn command(&self, begin: &str) -> String {
        let found = self.said.lines().map(str::trim).find(|l| l.starts_with(begin));
        found.unwrap_or_else(|| panic!("no `{begin}` in {}", self.said)).to_owned()
    }
}

#[test]
fn the_page_shows_values_that_change_and_video_that_plays() {
    let demo = Demo::start();
    let browser = Browser::start();
    browser.open(&demo.page);
    // Values change: the text of the things' cards is not what it was.
    browser.until("things", PATIENCE, "return document.querySelector('#things').innerText.length > 200");
    let before = browser.run("return document.querySelector('#things').innerText");
    let shown = serde_json::to_string(&before).unwrap();
    let changed = format!("return document.querySelector('#things').innerText !== {shown}");
    browser.until("values that change", PATIENCE, &changed);
    // Video plays: time advances and frames are decoded, also by a player that began anew meanwhile.
    let playing = |seconds: f64, frames: u64| {
        format!(
            "const v = document.querySelector('#cameras video'); return v && v.currentTime > {seconds} && \
             v.getVideoPlaybackQuality().totalVideoFrames > {frames} && v.currentTime"
        )
    };
    let first = browser.until("a playing video", PATIENCE, &playing(0.5, 10)).as_f64().unwrap();
    browser.until("video that goes on", PATIENCE, &playing(first + 2.0, 50));
    // The platform has everything so far, and the page says that the link is up.
    browser.until(
        "the upstream's state",
        PATIENCE,
        "return document.querySelector('#upstreams').innerText.length > 10",
    );
    browser.screenshot(&artifacts().join("demo.png"));
    let console = browser.console();
    let bad: Vec<&String> = console.iter().filter(|l| l.starts_with("SEVERE") || l.starts_with("WARNING")).collect();
    assert!(bad.is_empty(), "{bad:?}");
    drop(browser);
    demo.stop();
}

#[test]
fn the_printed_commands_work_and_ctrl_c_ends_it_in_2_s() {
    let demo = Demo::start();
    for begin in ["mosquitto_pub", "coap-client-notls", "echo"] {
        run_ok("sh", &["-ec", &demo.command(begin)]);
    }
    let things = format!("{}/api/v1/things", demo.page);
    let script = format!("import urllib.request; print(urllib.request.urlopen('{things}').read().decode())");
    let listed: Value = serde_json::from_str(&run_ok("python3", &["-c", &script])).unwrap();
    for id in ["attic", "fridge", "boiler"] {
        assert!(listed.to_string().contains(&format!("\"{id}\"")), "{id} is not among the things");
    }
    let (took, said) = demo.stop();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert!(said.contains(" 0 missing"), "{said}");
}
