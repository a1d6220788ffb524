//! Cameras that are asked for their stream by RTSP: always, or while somebody watches. Each has one task, which connects, hands
//! units to the streaming core, and comes again after a growing pause.
//!
//! Inside: when to connect; `session.rs` (one connection, through `retina`). Must not be in here: RTP.

mod session;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use device_models::Value;
use protocols::media::StreamName;
use tracing::{debug, info};
use url::Url;

use crate::config;
use crate::metrics::Metrics;
use crate::outlet::Voice;
use crate::stream::StreamCore;
use crate::threads::Tasks;

/// The pause after the first failure, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A connection that held so long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(30);
/// How often it is looked whether anybody still watches.
const LOOK: Duration = Duration::from_secs(1);
/// A viewer stands in the list about a second after it came, and later on a busy box: until then it is not missed.
const LISTED_MAX: Duration = Duration::from_secs(3);

/// What a pull needs of the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    pub(crate) streams: StreamCore,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
    pub(crate) voice: Voice,
}

/// One camera.
#[derive(Debug)]
struct Pull {
    stream: StreamName,
    url: Url,
    user: String,
    password_file: Option<PathBuf>,
    udp: bool,
    on_demand: bool,
    idle_max: Duration,
    means: Means,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("the password file {file}: {error}")]
    Password { file: PathBuf, error: std::io::Error },
    #[error("{0}")]
    Camera(String),
    #[error("the camera has neither H.264 nor H.265 nor sound that is carried")]
    NoTrack,
    #[error("{what} took longer than {} s", .after.as_secs())]
    Slow { what: &'static str, after: Duration },
    #[error("{0}")]
    Refused(#[from] protocols::Refusal),
    #[error("{0}")]
    Parted(#[from] crate::stream::Parted),
}

/// Checks an address; the reason if it is none.
pub fn check_url(url: &str) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|error| format!("`rtsp://HOST[:PORT]/PATH` is wanted: {error}"))?;
    if url.scheme() != "rtsp" || url.host_str().is_none() {
        return Err("write rtsp://HOST[:PORT]/PATH".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("write the name as `user` and the password into `password_file`".to_owned());
    }
    Ok(url)
}

/// Starts a task for each camera.
pub(crate) fn start(configs: &[config::Pull], means: &Means) {
    for config in configs {
        // The configuration was checked.
        let (Some(stream), Ok(url)) = (StreamName::parse(&config.stream), check_url(&config.url)) else { continue };
        let pull = Pull {
            stream,
            url,
            user: config.user.clone(),
            password_file: config.password_file.clone(),
            udp: config.transport == config::PullTransport::Udp,
            on_demand: config.when == config::PullWhen::OnDemand,
            idle_max: Duration::from_secs(config.idle_seconds),
            means: means.clone(),
        };
        let tasks = means.tasks.clone();
        means.tasks.spawn("pull", async move {
            tokio::select! {
                () = pull.run() => {}
                () = tasks.stopping() => {}
            }
        });
    }
}

impl Pull {
    async fn run(&self) {
        let mut pause = PAUSE_MIN;
        self.state("waiting", "");
        loop {
            if self.on_demand {
                self.wanted().await;
            }
            self.state("connecting", "");
            let began = Instant::now();
            let ended = tokio::select! {
                ended = session::run(self) => ended,
                () = self.unwatched(), if self.on_demand => {
                    info!(stream = %self.stream, "nobody watches the camera any more");
                    self.state("waiting", "");
                    continue;
                }
            };
            let why = match ended {
                Ok(()) => "the camera ended the stream".to_owned(),
                Err(error) => error.to_string(),
            };
            self.means.metrics.pull_failed(self.stream.as_str());
            self.state("failed", &why);
            info!(stream = %self.stream, host = self.url.host_str(), why, "the camera is not pulled");
            pause = if began.elapsed() >= GOOD { PAUSE_MIN } else { pause };
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn state(&self, state: &str, error: &str) {
        debug!(stream = %self.stream, state, "pull");
        self.means.metrics.pull_up(self.stream.as_str(), state == "playing");
        let text = |text: &str| Value::Text(text.chars().take(200).collect());
        self.means.voice.properties(self.stream.as_str(), vec![("pullState", text(state)), ("pullError", text(error))]);
    }

    /// Somebody waits for the stream.
    async fn wanted(&self) {
        let mut wants = self.means.streams.wants();
        while !self.means.streams.is_wanted(&self.stream) {
            if wants.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Nobody watches or waits, and that for long enough.
    async fn unwatched(&self) {
        let mut since = Instant::now();
        while since.elapsed() < self.idle_max + LISTED_MAX {
            tokio::time::sleep(LOOK).await;
            let name = self.stream.as_str();
            let watched = self.means.streams.list().iter().any(|info| info.name == name && info.viewers > 0);
            if watched || self.means.streams.is_wanted(&self.stream) {
                since = Instant::now();
            }
        }
    }
}

/// Between a half and all of it: cameras behind one switch must not all be asked at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness there is none, which does no harm.
    let _none = getrandom::fill(&mut random);
    pause / 2 + pause.mul_f64(f64::from(random[0]) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_hold_no_secret() {
        assert!(check_url("rtsp://10.0.0.9:554/Streaming/Channels/101?transportmode=unicast").is_ok());
        for (url, says) in [
            ("rtsp://admin:secret@10.0.0.9/x", "password_file"),
            ("http://10.0.0.9/x", "rtsp://"),
            ("camera", "rtsp://"),
        ] {
            let why = check_url(url).unwrap_err();
            assert!(why.contains(says) && !why.contains("secret"), "{url}: {why}");
        }
    }

    #[test]
    fn pauses_differ_and_stay_within_bounds() {
        let pauses: Vec<_> = (0..50).map(|_| jittered(PAUSE_MAX)).collect();
        assert!(pauses.iter().all(|pause| (PAUSE_MAX / 2..=PAUSE_MAX).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
