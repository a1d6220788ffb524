//! The servers under load, each with a folder and ports of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use sluicegate_tests::{Child, Gateway, Options, PATIENCE, free_port, wait_for};
use tempfile::TempDir;

use super::{Container, peers};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway,
    Nginx,
    NodeMedia,
    Xiu,
    Floor,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "sluicegate",
            Self::Nginx => "nginx-rtmp",
            Self::NodeMedia => "node-media-server",
            Self::Xiu => "xiu",
            Self::Floor => "floor",
        }
    }

    /// Of another project: its failure is a result.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nginx | Self::NodeMedia | Self::Xiu)
    }

    /// Those that are asked for by name alone, since they are fetched or built first.
    pub(crate) fn named(names: &[Peer]) -> impl Iterator<Item = Self> {
        names.iter().map(|peer| match peer {
            Peer::NodeMediaServer => Self::NodeMedia,
            Peer::Xiu => Self::Xiu,
        })
    }
}

/// A peer that is not in Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    NodeMediaServer,
    Xiu,
}

/// What the servers are told.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Merge window of the gateway and the floor, ms.
    pub(crate) window: (u64, u64),
    /// More of the gateway's `[stream]`.
    pub(crate) stream: String,
    /// The floor's: what it sends, and the moment that stamps count from.
    pub(crate) clip: std::path::PathBuf,
    pub(crate) epoch_ns: u64,
}

impl Setup {
    /// The defaults of an appliance, but for its limits in number.
    pub(crate) fn new(clip: &Path) -> Self {
        Self { window: (0, 350), stream: String::new(), clip: clip.to_owned(), epoch_ns: 0 }
    }
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    http: SocketAddr,
    process: Process,
    _folder: Option<TempDir>,
}

#[derive(Debug)]
enum Process {
    Gateway(Box<Gateway>),
    Other(Child),
}

impl Server {
    pub(crate) fn start(kind: Kind, setup: &Setup) -> anyhow::Result<Self> {
        if kind == Kind::Gateway {
            return Ok(Self::gateway(setup));
        }
        let (address, http) = (local(free_port()), local(free_port()));
        let folder = TempDir::new()?;
        let mut command = command(kind, setup, address.port(), http.port(), folder.path())?;
        let child = Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for(kind.name(), PATIENCE, || TcpStream::connect(address).ok());
        let http = if matches!(kind, Kind::NodeMedia | Kind::Xiu) { http } else { address };
        Ok(Self { address, http, process: Process::Other(child), _folder: Some(folder) })
    }

    fn gateway(setup: &Setup) -> Self {
        let (low, high) = setup.window;
        let options = Options::default().with(&format!(
            "[stream]\nwindow_min_ms = {low}\nwindow_max_ms = {high}\nviewers_max = 20000\nsources_max = 10000\n{}",
            setup.stream
        ));
        let address = local(options.media);
        let process = Process::Gateway(Box::new(Gateway::start(options)));
        Self { address, http: address, process, _folder: None }
    }

    /// Where it is watched in this container.
    pub(crate) fn door(&self, container: Container) -> SocketAddr {
        if container == Container::Rtmp { self.address } else { self.http }
    }

    pub(crate) fn pid(&self) -> i32 {
        match &self.process {
            Process::Gateway(gateway) => gateway.child.pid(),
            Process::Other(child) => child.pid(),
        }
    }

    /// The gateway's figure, summed over its labels; `None` of a peer.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let Process::Gateway(gateway) = &self.process else { return None };
        let text = gateway.get("/metrics");
        let lines =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        Some(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn command(kind: Kind, setup: &Setup, port: u16, http: u16, folder: &Path) -> anyhow::Result<Command> {
    let config = folder.join("config");
    let mut command = match kind {
        Kind::Gateway => anyhow::bail!("the gateway is started as the tests start it"),
        Kind::Nginx => {
            std::fs::write(&config, nginx(port, folder))?;
            let mut command = Command::new("/usr/sbin/nginx");
            command.arg("-p").arg(folder).arg("-c").arg(&config);
            command
        }
        Kind::NodeMedia => {
            let said = json!({
                "bind": "127.0.0.1", "rtmp": {"port": port}, "http": {"port": http},
                "auth": {"play": false, "publish": false}, "webadmin": {"enable": false},
                "store": {"path": folder}, "record": {"auto": false, "path": folder},
            });
            std::fs::write(&config, said.to_string())?;
            let mut command = Command::new("node");
            command.arg(peers::node_media_server()?).arg("--config").arg(&config);
            command
        }
        Kind::Xiu => {
            let said = format!(
                "[rtmp]\nenabled = true\nport = {port}\ngop_num = 1\n[httpflv]\nenabled = true\nport = {http}\n\
                 [authsecret]\nkey = \"\"\npassword = \"\"\n[log]\nlevel = \"error\"\n"
            );
            // It goes by the name's end.
            let config = config.with_extension("toml");
            std::fs::write(&config, said)?;
            let mut command = Command::new(peers::xiu()?);
            command.arg("--config").arg(&config);
            command
        }
        Kind::Floor => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["floor", "--port", &port.to_string(), "--window-ms", &setup.window.0.to_string()]);
            command.args(["--epoch-ns", &setup.epoch_ns.to_string(), "--clip"]).arg(&setup.clip);
            command
        }
    };
    command.current_dir(folder);
    Ok(command)
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
