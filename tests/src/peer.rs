//! Other programs: started, awaited with a limit, killed when the test ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::{PATIENCE, root};

/// A child process that does not outlive the test.
#[derive(Debug)]
pub struct Child {
    pub inner: std::process::Child,
    what: String,
    /// It leads a process group of its own, which is killed with it: what a shell started must not run on.
    leads: bool,
}

impl Child {
    /// Starts a program; its output is thrown away unless the command says otherwise.
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let inner = command.spawn().unwrap_or_else(|e| panic!("{what}: {e} (is its package in tests/packages?)"));
        Self { inner, what, leads: false }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.inner.id()).expect("a process id")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    /// Waits for the end, at most so long.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.inner.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(started.elapsed() < patience, "{} still runs after {patience:?}", self.what);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.inner.try_wait().expect("a child of ours").is_none()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let leads = self.leads && self.is_running();
        if let Some(group) = rustix::process::Pid::from_raw(self.pid()).filter(|_| leads) {
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        drop(self.inner.kill());
        drop(self.inner.wait());
    }
}

/// Runs a program to its end and returns what it said. Killed (and the test failed) after [`PATIENCE`] twice over.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Child::start(command.process_group(0));
    child.leads = true;
    let mut stdout = child.inner.stdout.take().expect("piped");
    let mut stderr = child.inner.stderr.take().expect("piped");
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(stdout.read_to_end(&mut bytes));
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(stderr.read_to_end(&mut bytes));
        bytes
    });
    let status = child.wait(PATIENCE * 3);
    Output { status, stdout: out.join().expect("a reader"), stderr: err.join().expect("a reader") }
}

/// Runs a program that must succeed and returns its standard output as text.
pub fn run_ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell line that must succeed.
pub fn shell(line: &str) -> String {
    run_ok("sh", &["-ec", line])
}

/// A Python with these packages of PyPI, in an environment of its own beside the build, installed once.
pub fn python(name: &str, requirements: &Path) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let folder = root().join("target/python").join(name);
    let (python, done) = (folder.join("bin/python"), folder.join("requirements.txt"));
    let wanted = std::fs::read(requirements).expect("the requirements");
    if std::fs::read(&done).ok().as_ref() != Some(&wanted) {
        let (folder, requirements) = (folder.display().to_string(), requirements.display().to_string());
        run_ok("python3", &["-m", "venv", "--clear", &folder]);
        let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", &requirements];
        run_ok(&python.display().to_string(), &pip);
        std::fs::write(&done, wanted).expect("the mark that it is whole");
    }
    python
}

/// An ffmpeg that speaks Enhanced RTMP, which Debian's does not: `$SLUICEGATE_FFMPEG`, or the one that PyPI's
/// imageio-ffmpeg brings, installed once beside the build.
pub fn newer_ffmpeg() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        if let Some(named) = std::env::var_os("SLUICEGATE_FFMPEG") {
            return PathBuf::from(named);
        }
        let folder = root().join("target/peers").display().to_string();
        let python = format!("{folder}/bin/python");
        if !Path::new(&python).exists() {
            shell(&format!("python3 -m venv {folder}"));
        }
        let ask = ["-c", "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"];
        if !run(&python, &ask).status.success() {
            run_ok(&python, &["-m", "pip", "install", "-q", "--disable-pip-version-check", "imageio-ffmpeg==0.8.1"]);
        }
        PathBuf::from(run_ok(&python, &ask).trim())
    };
    FOUND.get_or_init(find).clone()
}

/// A Python that has aiortc, a WebRTC peer of its own making: from PyPI, installed once beside the build.
pub fn aiortc() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let folder = root().join("target/aiortc").display().to_string();
        let python = format!("{folder}/bin/python");
        if !Path::new(&python).exists() {
            shell(&format!("python3 -m venv {folder}"));
        }
        if !run(&python, &["-c", "import aiortc"]).status.success() {
            run_ok(&python, &["-m", "pip", "install", "-q", "--disable-pip-version-check", "aiortc==1.16.0"]);
        }
        PathBuf::from(python)
    };
    FOUND.get_or_init(find).clone()
}
