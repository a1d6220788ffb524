//! A file system of a few MiB in a mount namespace of its own, that outlives the gateways on it. Needs the right to mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{Child, PATIENCE, run, wait_for};

/// A process holds the namespace; it ends with this.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
    holder: Child,
}

impl SmallDisk {
    pub fn new(mib: u32) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().display();
        let mount = format!("mount -t tmpfs -o size={mib}m none {path} && touch {path}/mounted && exec sleep 86400");
        let holder = Child::start(Command::new("unshare").args(["--mount", "sh", "-c", &mount]));
        let disk = Self { folder, holder };
        wait_for("the small disk", PATIENCE, || disk.inside().join("mounted").exists().then_some(()));
        disk
    }

    /// Where it is mounted, to those inside.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The same, from outside.
    pub fn inside(&self) -> PathBuf {
        let root = Path::new("/proc").join(self.holder.pid().to_string()).join("root");
        root.join(self.path().strip_prefix("/").expect("an absolute path"))
    }

    /// What to run a program under, so that it is inside.
    pub fn enter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--mount=/proc/{}/ns/mnt", self.holder.pid())]
    }

    /// Makes it read-only (nobody may have a file open for writing) or writable again.
    pub fn remount(&self, options: &str) {
        let path = self.path().display().to_string();
        let mount = self.enter().pop().expect("the namespace");
        let output = run("nsenter", &[&mount, "mount", "-o", &format!("remount,{options}"), &path]);
        assert!(output.status.success(), "remount {options}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
