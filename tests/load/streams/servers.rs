//! The servers under load, each with a folder and a port of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use sluicegate_tests::{Child, Gateway, Options, PATIENCE, free_port, wait_for};
use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway,
    Nginx,
    Floor,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "sluicegate",
            Self::Nginx => "nginx-rtmp",
            Self::Floor => "floor",
        }
    }
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    process: Process,
    _folder: Option<TempDir>,
}

#[derive(Debug)]
enum Process {
    Gateway(Box<Gateway>),
    Other(Child),
}

impl Server {
    pub(crate) fn start(kind: Kind, window: (u64, u64), clip: &Path, epoch_ns: u64) -> anyhow::Result<Self> {
        let port = free_port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let folder = TempDir::new()?;
        let mut command = match kind {
            Kind::Gateway => {
                let (low, high) = window;
                let options = Options::default()
                    .with(&format!("[stream]\nwindow_min_ms = {low}\nwindow_max_ms = {high}\nviewers_max = 20000"));
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.media));
                let process = Process::Gateway(Box::new(Gateway::start(options)));
                return Ok(Self { address, process, _folder: None });
            }
            Kind::Nginx => {
                let config = folder.path().join("nginx.conf");
                std::fs::write(&config, nginx(port, folder.path()))?;
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-p").arg(folder.path()).arg("-c").arg(config);
                command
            }
            Kind::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["floor", "--port", &port.to_string(), "--window-ms", &window.0.to_string()]);
                command.args(["--epoch-ns", &epoch_ns.to_string(), "--clip"]).arg(clip);
                command
            }
        };
        let child = Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for(kind.name(), PATIENCE, || TcpStream::connect(address).ok());
        Ok(Self { address, process: Process::Other(child), _folder: Some(folder) })
    }

    pub(crate) fn pid(&self) -> i32 {
        match &self.process {
            Process::Gateway(gateway) => gateway.child.pid(),
            Process::Other(child) => child.pid(),
        }
    }
}

/// One process, nothing logged, everything else as it comes.
fn nginx(port: u16, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;\ndaemon off;\nmaster_process off;\n\
         pid {folder}/pid;\nerror_log {folder}/error.log crit;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16000; }}\n\
         rtmp {{ access_log off; server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}\n"
    )
}
