//! The beginning of a connection: back to the cursor, what the dialect has to know of it, and who signs in where.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::destination::{Settings, Version};
use super::super::dialect::{Beginning, SignIn};
use super::{Names, Sender};
use crate::bus::BusError;
use crate::{clock, config};

/// Where the connections of each upstream are counted, by its name.
const TREE_SESSIONS: &str = "upstream-sessions";
/// How long a connection waits for its number to be on disk. With a disk that takes nothing it goes on in memory.
const COUNTED_MAX: Duration = Duration::from_secs(2);

impl Sender {
    /// Back to the cursor: what was under way on the last connection goes again.
    pub(super) async fn begin(&mut self) -> Result<(), String> {
        self.last_token = 0;
        self.back();
        self.names = Names::none();
        self.introductions.reset();
        self.store_rest = None;
        self.useful = false;
        self.waiting = None;
        self.progress = Instant::now();
        let mut files = Vec::new();
        for path in self.dialect.files() {
            files.push(secret(&path).await?);
        }
        if self.dialect.counts() {
            self.count_session().await;
        }
        self.dialect.begin(Beginning { session: self.session, now_us: clock::now_us(), files: &files })
    }

    /// Takes the next number, and sees it on disk before anybody hears it.
    async fn count_session(&mut self) {
        let kept = self.keyed.get(TREE_SESSIONS, self.config.name.as_bytes());
        let kept = kept.ok().flatten().and_then(|bytes| Some(u64::from_le_bytes((*bytes).try_into().ok()?)));
        // On a disk that takes nothing, memory knows more.
        self.session = match (kept, self.counted) {
            (Some(kept), true) => kept.max(self.session) + 1,
            (Some(kept), false) => kept + 1,
            (None, true) => self.session + 1,
            (None, false) => 0,
        };
        self.counted = true;
        let put = self.keyed.put(TREE_SESSIONS, self.config.name.as_bytes(), &self.session.to_le_bytes());
        let written = async {
            put?;
            self.keyed.flush().await
        };
        let told = match tokio::time::timeout(COUNTED_MAX, written).await {
            Ok(written) => written.map_err(|error: BusError| error.to_string()),
            Err(_) => Err(format!("nothing for {COUNTED_MAX:?}")),
        };
        if let Err(error) = told {
            warn!(upstream = self.config.name, error, "the number of this connection is not on disk");
        }
    }

    /// Read anew for each connection: a changed password or certificate counts from the next one.
    pub(super) async fn settings(&self) -> Result<Settings, String> {
        let config = &self.config;
        let password = match (&config.password_file, &config.password_env) {
            (Some(path), _) => secret(path).await?,
            (None, Some(name)) => std::env::var(name).map_err(|error| format!("{name}: {error}"))?,
            (None, None) => String::new(),
        };
        let (client_id, credentials) = if let Some(SignIn { client_id, username, password }) = self.dialect.sign_in() {
            (client_id, Some((username, password)))
        } else {
            let credentials = config.username.clone().map(|name| (name, password));
            (format!("{}-{}", self.gateway, config.name), credentials)
        };
        Ok(Settings {
            place: self.place.clone(),
            version: match config.mqtt_version {
                config::MqttVersion::V5 => Version::V5,
                config::MqttVersion::V311 => Version::V311,
            },
            sasl: config.sasl,
            token: match &config.token_file {
                Some(path) => Some(secret(path).await?),
                None => None,
            },
            content_type: self.dialect.content_type(),
            trust: self.trust.clone(),
            client_id,
            credentials,
            keep_alive: Duration::from_secs(config.keep_alive_seconds),
            // A command for a gateway that is away must not be carried out hours later.
            clean_start: true,
            session_expiry: Duration::ZERO,
            window: config.inflight_max.clamp(1, 100),
            will: self.station().map(|station| station.offline),
        })
    }
}

async fn secret(path: &Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
