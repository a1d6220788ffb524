//! The brokers under load, and the one behind them that takes everything.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluicegate_tests::{Child, Gateway, Options, PATIENCE, free_port, wait_for};
use tempfile::TempDir;

/// Debian's mosquitto with persistence on, nothing limited that would make it drop.
#[derive(Debug)]
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    pub(crate) child: Child,
    _folder: TempDir,
}

impl Mosquitto {
    /// With `bridge`: everything goes on to the broker at this port, QoS 1.
    pub(crate) fn start(bridge: Option<u16>) -> anyhow::Result<Self> {
        let (port, folder) = (free_port(), TempDir::new()?);
        let mut config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {}/\n\
             max_queued_messages 0\nmax_inflight_messages 100\nsys_interval 1\nset_tcp_nodelay true\n",
            folder.path().display()
        );
        if let Some(to) = bridge {
            write!(config, "connection up\naddress 127.0.0.1:{to}\ntopic # out 1\nclientid up\ncleansession false\n")?;
        }
        let file = folder.path().join("mosquitto.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Child::start(&mut command);
        wait_for("mosquitto", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).ok());
        Ok(Self { port, child, _folder: folder })
    }
}

/// How many publications a broker took in, as it says itself every second.
#[derive(Debug)]
pub(crate) struct Counter {
    count: Arc<AtomicU64>,
    _child: Child,
}

impl Counter {
    pub(crate) fn of(port: u16) -> anyhow::Result<Self> {
        let mut command = Command::new("mosquitto_sub");
        command.args(["-p", &port.to_string(), "-t", "$SYS/broker/publish/messages/received"]);
        let mut child = Child::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let lines = child.inner.stdout.take().ok_or_else(|| anyhow::anyhow!("piped"))?;
        let count = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&count);
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                told.store(line.trim().parse().unwrap_or(0), Ordering::Release);
            }
        });
        Ok(Self { count, _child: child })
    }
}

/// A broker under load.
#[derive(Debug)]
pub(crate) enum Broker {
    Gateway(Box<Gateway>),
    Mosquitto(Mosquitto, Option<Counter>),
}

impl Broker {
    pub(crate) fn gateway(upstream: Option<u16>) -> Self {
        let mut options = Options::default();
        if let Some(port) = upstream {
            options = options
                .with(&format!("[[upstream]]\nname = \"up\"\nurl = \"mqtt://127.0.0.1:{port}\"\ndialect = \"native\""));
        }
        Self::Gateway(Box::new(Gateway::start(options)))
    }

    pub(crate) fn mosquitto(upstream: Option<u16>) -> anyhow::Result<Self> {
        let counter = upstream.map(Counter::of).transpose()?;
        Ok(Self::Mosquitto(Mosquitto::start(upstream)?, counter))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Gateway(_) => "sluicegate",
            Self::Mosquitto(..) => "mosquitto",
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        match self {
            Self::Gateway(gateway) => gateway.child.pid(),
            Self::Mosquitto(broker, _) => broker.child.pid(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let port = match self {
            Self::Gateway(gateway) => gateway.options.mqtt,
            Self::Mosquitto(broker, _) => broker.port,
        };
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// Messages that are upstream.
    pub(crate) fn forwarded(&self) -> u64 {
        match self {
            Self::Gateway(gateway) => gateway.metric("sluicegate_messages_sent_total") as u64,
            Self::Mosquitto(_, counter) => counter.as_ref().map_or(0, |c| c.count.load(Ordering::Acquire)),
        }
    }
}
