//! The streaming core behind a bare acceptor, to measure and prove it without the rest of the gateway:
//!
//!     cargo run --release --example stream_rig -- serve 127.0.0.1:19350 [RELAY_URL]
//!     cargo run --release --example stream_rig -- watch 127.0.0.1:19350 live/gate 1000 10
//!
//! `serve` takes RTMP and HTTP-FLV on one port, admits everybody, and prints streams and threads every 5 s. `watch` opens
//! that many HTTP-FLV viewers that throw away what they get for that many seconds, and prints what they got.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::BytesMut;
use gateway::config;
use gateway::stream::{Handover, StreamCore};
use gateway::threads::Tasks;
use protocols::media::StreamName;
use protocols::{Claim, Endpoint, Identity, Input, Outbox, Output, PROTOCOLS, Peer, Protocol, Session, Sniff};
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", address, relay @ ..] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(serve(address, relay))
        }
        ["watch", address, stream, viewers, seconds] => watch(address, stream, viewers.parse()?, seconds.parse()?),
        _ => bail!("serve ADDRESS [RELAY_URL] | watch ADDRESS STREAM VIEWERS SECONDS"),
    }
}

async fn serve(address: &str, relays: &[&str]) -> anyhow::Result<()> {
    let mut stream = config::Stream::default();
    for (key, slot) in [("WINDOW_MIN_MS", &mut stream.window_min_ms), ("WINDOW_MAX_MS", &mut stream.window_max_ms)] {
        if let Ok(value) = std::env::var(key) {
            *slot = value.parse()?;
        }
    }
    let relays: Vec<_> =
        relays.iter().map(|url| config::Relay { stream: "*".to_owned(), url: (*url).to_owned() }).collect();
    let (send, mut reports) = mpsc::channel(1024);
    let tasks = Tasks::new();
    let core = StreamCore::start(&stream, &relays, send, &tasks)?;
    let listener = TcpListener::bind(address).await?;
    let told = core.clone();
    tasks.spawn("tell", async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            for thread in told.threads() {
                println!("{}", serde_json::to_string(&thread).unwrap_or_default());
            }
            for stream in told.list() {
                println!("{}", serde_json::to_string(&stream).unwrap_or_default());
            }
        }
    });
    tasks.spawn("reports", async move {
        while let Some(report) = reports.recv().await {
            println!("{} {:?}", report.device, report.word);
        }
    });
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                let core = core.clone();
                tasks.spawn("talk", async move {
                    if let Err(error) = talk(socket, &core).await {
                        eprintln!("{error:#}");
                    }
                });
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    core.close().await;
    Ok(())
}

async fn talk(mut socket: TcpStream, core: &StreamCore) -> anyhow::Result<()> {
    let rows: Vec<&dyn Protocol> =
        PROTOCOLS.iter().copied().filter(|row| matches!(row.name(), "rtmp" | "http-flv")).collect();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("{error}"))?;
    let peer = Peer { address: socket.peer_addr().ok(), adapter: Arc::from("rig"), seed, secure: false };
    let mut unread = BytesMut::with_capacity(4096);
    let mut talk: Option<(Arc<dyn Endpoint>, Box<dyn Session>)> = None;
    let mut outbox = Outbox::default();
    loop {
        if socket.read_buf(&mut unread).await? == 0 {
            return Ok(());
        }
        if talk.is_none()
            && let Some(row) = rows.iter().find(|row| row.sniff(&unread) == Sniff::Yes)
        {
            let endpoint = row.configure(&toml::Table::new())?;
            let session = endpoint.open(&peer);
            talk = Some((endpoint, session));
        }
        let Some((endpoint, session)) = &mut talk else { continue };
        session.receive(Instant::now(), Input::Stream(&mut unread), &mut outbox)?;
        while let Some(output) = outbox.pop() {
            match output {
                Output::Send(bytes) => socket.write_all(&bytes).await?,
                Output::Admit { ticket, claim } => {
                    let outcome = match &claim {
                        Claim::Publish { stream, .. } => core.publishable(stream),
                        Claim::Watch { stream, .. } => core.available(stream).await,
                        Claim::Device { .. } => Ok(()),
                    };
                    let outcome = outcome.map(|()| Identity::anonymous());
                    session.receive(Instant::now(), Input::Admission { ticket, outcome }, &mut outbox)?;
                }
                Output::Source { .. } | Output::Watch { .. } => {
                    let mut rest = Outbox::default();
                    rest.push(output);
                    while let Some(output) = outbox.pop() {
                        rest.push(output);
                    }
                    let limits = endpoint.limits();
                    let Some((_, session)) = talk.take() else { return Ok(()) };
                    let socket = socket.into_std()?;
                    core.adopt(Handover { socket, session, outbox: rest, unread, limits, peer });
                    return Ok(());
                }
                Output::Close { reason } => bail!("closed: {reason}"),
                other => println!("{other:?}"),
            }
        }
    }
}

/// Viewers that throw everything away: MSG_TRUNC takes bytes off a TCP socket without copying them.
fn watch(address: &str, stream: &str, viewers: usize, seconds: u64) -> anyhow::Result<()> {
    let name = StreamName::parse(stream).context("not a stream name")?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut crowd = Crowd { poll, sockets: Vec::new(), bytes: Vec::new(), closed: 0, scratch: vec![0; 1 << 20] };
    for index in 0..viewers {
        let mut socket = std::net::TcpStream::connect(address)?;
        std::io::Write::write_all(&mut socket, format!("GET /{name}.flv HTTP/1.1\r\nHost: rig\r\n\r\n").as_bytes())?;
        socket.set_nonblocking(true)?;
        epoll::add(&crowd.poll, &socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
        crowd.sockets.push(Some(socket));
        crowd.bytes.push(0);
        crowd.take(Duration::ZERO)?;
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let before: u64 = crowd.bytes.iter().sum();
    while Instant::now() < end {
        crowd.take(Duration::from_millis(100))?;
    }
    let (sum, closed): (u64, _) = (crowd.bytes.iter().sum(), crowd.closed);
    let (min, max) = (crowd.bytes.iter().min().unwrap_or(&0), crowd.bytes.iter().max().unwrap_or(&0));
    let rate = (sum - before) as f64 * 8e-6 / seconds as f64;
    println!("{viewers} viewers, {closed} closed, {rate:.2} Mb/s in all, {min} to {max} bytes each");
    Ok(())
}

struct Crowd {
    poll: std::os::fd::OwnedFd,
    sockets: Vec<Option<std::net::TcpStream>>,
    bytes: Vec<u64>,
    closed: usize,
    scratch: Vec<u8>,
}

impl Crowd {
    /// Throws away what has arrived.
    fn take(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(1024);
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        for event in &events {
            let index = event.data.u64() as usize;
            let (Some(slot), Some(bytes)) = (self.sockets.get_mut(index), self.bytes.get_mut(index)) else { continue };
            let Some(socket) = slot else { continue };
            match recv(&*socket, &mut self.scratch, RecvFlags::TRUNC) {
                Err(rustix::io::Errno::AGAIN) => {}
                Ok((_, 0)) | Err(_) => {
                    self.closed += 1;
                    *slot = None;
                }
                Ok((_, read)) => *bytes += read as u64,
            }
        }
        Ok(())
    }
}
