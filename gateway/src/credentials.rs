//! Who may come in, and as what: every claim of every protocol is decided here.
//!
//! Secrets are kept hashed: those from files and the environment as SHA-256 digests in memory, those in the
//! configuration as argon2 hashes. Must not be in here: what a refusal looks like on the wire.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::PasswordHash;
use argon2::{Argon2, PasswordVerifier};
use protocols::{Claim, Identity, Pass, Reach, Refusal, Signature};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::clock;
use crate::intake::AdapterInfo;
use crate::signing::{Kind, SigningKey, Wrong};
use crate::threads::Tasks;

/// argon2 takes up to 19 MiB and tens of milliseconds a check: two at a time, so that a storm of reconnects can take
/// neither the memory nor the processors.
const HASHING_MAX: usize = 2;
/// Checked secrets remembered (as digests), so that a fleet that reconnects is not hashed again.
const REMEMBERED_MAX: usize = 10_000;

/// How long the console's own links let players in, seconds.
const LINK_SECONDS: u64 = 300;

/// The same of a recording: an hour of it, looked at twice.
const RECORDING_LINK_SECONDS: u64 = 2 * 3_600;

/// One credential, its secret ready to compare.
pub struct Credential {
    pub name: String,
    pub secret: Secret,
    /// Signs URLs of the streams in `push` and `watch`.
    pub signing: Option<SigningKey>,
    pub devices: Vec<String>,
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    pub push: Vec<String>,
    pub watch: Vec<String>,
}

/// A secret as it is kept. Never printed.
#[derive(Clone)]
pub enum Secret {
    Digest([u8; 32]),
    /// A PHC string: `$argon2id$v=19$…`.
    Argon2(String),
    /// Nothing opens it: the credential only signs.
    None,
}

impl Credential {
    /// Whether it is for publishing or playing this stream.
    fn covers(&self, kind: Kind, stream: &str) -> bool {
        let patterns = match kind {
            Kind::Publish => &self.push,
            Kind::Play => &self.watch,
        };
        patterns.iter().any(|pattern| stream_covers(pattern, stream))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Keeps the digest of a plain secret.
    pub fn of(plain: &[u8]) -> Self {
        Self::Digest(digest(plain))
    }

    /// A hash as configuration spells it.
    pub fn hash(phc: &str) -> Result<Self, String> {
        PasswordHash::new(phc).map_err(|e| format!("not an argon2 hash: {e}"))?;
        Ok(Self::Argon2(phc.to_owned()))
    }
}

/// Decides claims.
#[derive(Debug)]
pub struct Gatekeeper {
    by_name: HashMap<String, Arc<Credential>>,
    /// Tokens that come without a name.
    by_digest: HashMap<[u8; 32], Arc<Credential>>,
    /// For the console's own links: made at the start, known to nobody. `None`: the kernel has no randomness.
    own: Option<SigningKey>,
    remembered: Mutex<HashSet<[u8; 32]>>,
    hashing: Semaphore,
    tasks: Tasks,
}

impl Gatekeeper {
    /// Who comes in by a link of [`link`](Self::link).
    pub const CONSOLE: &str = "console";

    pub fn new(credentials: Vec<Credential>, tasks: Tasks) -> Self {
        let credentials: Vec<_> = credentials.into_iter().map(Arc::new).collect();
        let by_digest = credentials.iter().filter_map(|c| match c.secret {
            Secret::Digest(digest) => Some((digest, Arc::clone(c))),
            Secret::Argon2(_) | Secret::None => None,
        });
        Self {
            by_digest: by_digest.collect(),
            by_name: credentials.into_iter().map(|c| (c.name.clone(), c)).collect(),
            own: random_key(),
            remembered: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            tasks,
        }
    }

    /// The answer to a claim made through this adapter.
    pub async fn admit(&self, adapter: &AdapterInfo, claim: &Claim) -> Result<Identity, Refusal> {
        match claim {
            Claim::Device { name, user, secret } => {
                self.device(adapter, name, user.as_deref(), secret.as_deref()).await
            }
            Claim::Publish { stream, pass } => self.stream(adapter, Kind::Publish, stream.as_str(), pass),
            Claim::Watch { stream, pass } => self.stream(adapter, Kind::Play, stream.as_str(), pass),
        }
    }

    /// The query of an address that lets a player in to this stream for some minutes: for whoever may see everything
    /// anyway. `None` when the kernel gave no randomness at the start.
    pub fn link(&self, stream: &str) -> Option<String> {
        let now_s = u64::try_from(clock::now_us() / 1_000_000).unwrap_or(0);
        Some(self.own.as_ref()?.query(Kind::Play, stream, now_s + LINK_SECONDS))
    }

    /// The same for a recording on disk, played in ranges: for longer, since it is looked at for longer.
    pub fn recording_link(&self, id: u64) -> Option<String> {
        let now_s = u64::try_from(clock::now_us() / 1_000_000).unwrap_or(0);
        Some(self.own.as_ref()?.recording_query(id, now_s + RECORDING_LINK_SECONDS))
    }

    /// Whether the signature is of a [`recording_link`](Self::recording_link) of this recording.
    pub fn opens_recording(&self, id: u64, signature: &Signature) -> bool {
        let now_s = u64::try_from(clock::now_us() / 1_000_000).unwrap_or(0);
        self.own.as_ref().is_some_and(|own| own.verify_recording(id, signature, now_s).is_ok())
    }

    /// Whether an identity may publish to the topic by its credential's own list (its devices' topics are the
    /// dialects' business). The anonymous may do everything: the adapter let them in.
    pub fn may_publish(&self, identity: &Identity, client: &str, topic: &str) -> bool {
        self.topic_allowed(identity, client, topic, |c| &c.publish)
    }

    /// Whether an identity may subscribe to the filter.
    pub fn may_subscribe(&self, identity: &Identity, client: &str, filter: &str) -> bool {
        self.topic_allowed(identity, client, filter, |c| &c.subscribe)
    }

    fn topic_allowed(
        &self,
        identity: &Identity,
        client: &str,
        topic: &str,
        list: impl Fn(&Credential) -> &Vec<String>,
    ) -> bool {
        let Some(credential) = self.by_name.get(&*identity.name) else { return identity.reach == Reach::Any };
        list(credential).iter().any(|pattern| {
            let pattern = pattern.replace("{client}", client).replace("{user}", &identity.name);
            covers(&pattern, topic)
        })
    }

    async fn device(
        &self,
        adapter: &AdapterInfo,
        name: &str,
        user: Option<&str>,
        secret: Option<&[u8]>,
    ) -> Result<Identity, Refusal> {
        let claimed = user.filter(|u| !u.is_empty()).unwrap_or(name);
        let Some(secret) = secret else {
            // ThingsBoard's way: the token is the user name and there is no password.
            if let Some(credential) = user.and_then(|token| self.by_digest.get(&digest(token.as_bytes()))) {
                return Ok(identity(credential));
            }
            return self.anonymous(adapter, claimed);
        };
        let credential = match self.by_name.get(claimed) {
            Some(credential) => credential,
            // A token names its credential by itself.
            None => match self.by_digest.get(&digest(secret)) {
                Some(credential) if user.is_none() => credential,
                _ => return self.anonymous(adapter, claimed),
            },
        };
        if self.matches(&credential.secret, secret).await {
            Ok(identity(credential))
        } else {
            Err(Refusal::Unauthorized)
        }
    }

    /// Nobody's secret: let in where the adapter says so, unless the name belongs to a credential.
    fn anonymous(&self, adapter: &AdapterInfo, claimed: &str) -> Result<Identity, Refusal> {
        if adapter.allow_anonymous && !self.by_name.contains_key(claimed) {
            Ok(Identity::anonymous())
        } else {
            Err(Refusal::Unauthorized)
        }
    }

    fn stream(&self, adapter: &AdapterInfo, kind: Kind, stream: &str, pass: &Pass) -> Result<Identity, Refusal> {
        if let Some(signature) = &pass.signature {
            return self.signed(kind, stream, signature);
        }
        let Some(key) = &pass.key else {
            let open =
                kind == Kind::Publish && adapter.push_without_key.iter().any(|pattern| stream_covers(pattern, stream));
            return if adapter.allow_anonymous || open {
                Ok(Identity::anonymous())
            } else {
                Err(Refusal::Unauthorized)
            };
        };
        let Some(credential) = self.by_digest.get(&digest(key.as_bytes())) else { return Err(Refusal::Unauthorized) };
        if credential.covers(kind, stream) {
            Ok(identity(credential))
        } else {
            Err(Refusal::Forbidden(format!("the key of `{}` is not for stream `{stream}`", credential.name)))
        }
    }

    /// Whether one of those who may give this stream away did.
    fn signed(&self, kind: Kind, stream: &str, signature: &Signature) -> Result<Identity, Refusal> {
        let expired = || Refusal::Forbidden("the signed address has expired".to_owned());
        if let Some(own) = &self.own {
            // By the clock that it was made with, right or wrong.
            let now_s = u64::try_from(clock::now_us() / 1_000_000).unwrap_or(0);
            match own.verify(kind, stream, signature, now_s) {
                Ok(()) => return Ok(Identity { name: Arc::from(Self::CONSOLE), reach: Reach::Only(Arc::from([])) }),
                Err(Wrong::Expired) => return Err(expired()),
                Err(Wrong::Mac) => {}
            }
        }
        let now_s = clock::now_s();
        for credential in self.by_name.values().filter(|credential| credential.covers(kind, stream)) {
            let Some(key) = &credential.signing else { continue };
            match (key.verify(kind, stream, signature, now_s.unwrap_or(0)), now_s) {
                (Ok(()), Some(_)) => return Ok(identity(credential)),
                (Ok(()), None) => {
                    let why = "the gateway's clock is not set: a signed address cannot be judged";
                    return Err(Refusal::Unavailable(why.to_owned()));
                }
                (Err(Wrong::Expired), _) => return Err(expired()),
                (Err(Wrong::Mac), _) => {}
            }
        }
        Err(Refusal::Unauthorized)
    }

    async fn matches(&self, kept: &Secret, given: &[u8]) -> bool {
        match kept {
            // Digests of secrets: equality in variable time tells nothing about the secret itself.
            Secret::Digest(kept) => *kept == digest(given),
            Secret::Argon2(phc) => self.argon2(phc, given).await,
            Secret::None => false,
        }
    }

    async fn argon2(&self, phc: &str, given: &[u8]) -> bool {
        let mut both = Sha256::new();
        both.update(digest(phc.as_bytes()));
        both.update(given);
        let both: [u8; 32] = both.finalize().into();
        if self.remembered.lock().unwrap_or_else(PoisonError::into_inner).contains(&both) {
            return true;
        }
        let Ok(_permit) = self.hashing.acquire().await else { return false };
        let (phc, given) = (phc.to_owned(), given.to_vec());
        let checked = self.tasks.blocking(move || {
            PasswordHash::new(&phc).is_ok_and(|hash| Argon2::default().verify_password(&given, &hash).is_ok())
        });
        let right = checked.await.unwrap_or(false);
        if right {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(both);
        }
        right
    }
}

fn random_key() -> Option<SigningKey> {
    let mut key = [0; 32];
    match getrandom::fill(&mut key) {
        Ok(()) => Some(SigningKey::new(&key)),
        Err(error) => {
            tracing::warn!(%error, "no randomness from the kernel: the console cannot make links to streams");
            None
        }
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn identity(credential: &Credential) -> Identity {
    let reach = if credential.devices.iter().any(|d| d == "*") {
        Reach::Any
    } else if credential.devices.is_empty() {
        Reach::Only(Arc::from([credential.name.clone().into_boxed_str()]))
    } else {
        Reach::Only(credential.devices.iter().map(|d| d.clone().into_boxed_str()).collect())
    };
    Identity { name: Arc::from(credential.name.as_str()), reach }
}

/// Whether an MQTT filter covers a topic (or a filter no wider than itself): MQTT 5.0, 4.7.
fn covers(pattern: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in pattern.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return !(pattern == "#" && topic.starts_with('$')),
            ("+", Some(level)) if level != "#" => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Stream patterns: a name, `live/*`, `*`.
pub fn stream_covers(pattern: &str, stream: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => stream.starts_with(prefix),
        None => pattern == stream,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(allow_anonymous: bool) -> AdapterInfo {
        AdapterInfo {
            name: Arc::from("a"),
            product: None,
            auto_register: false,
            allow_anonymous,
            push_without_key: vec!["jt/0123*".to_owned()],
            commit: None,
        }
    }

    fn keeper() -> Gatekeeper {
        let credential = |name: &str, secret: Secret, devices: &[&str]| Credential {
            name: name.to_owned(),
            secret,
            signing: Some(SigningKey::new(name.as_bytes())),
            devices: devices.iter().map(|d| (*d).to_owned()).collect(),
            publish: vec!["site/{client}/#".to_owned()],
            subscribe: vec!["site/+/state".to_owned()],
            push: vec!["live/*".to_owned()],
            watch: vec!["live/gate-1".to_owned()],
        };
        let salt = argon2::password_hash::SaltString::from_b64("c2FsdHNhbHQ").unwrap();
        let phc = argon2::PasswordHasher::hash_password(&Argon2::default(), b"hashed", &salt).unwrap().to_string();
        Gatekeeper::new(
            vec![
                credential("meter-1", Secret::of(b"plain"), &[]),
                credential("hub", Secret::hash(&phc).unwrap(), &["*"]),
            ],
            Tasks::new(),
        )
    }

    fn device(name: &str, user: Option<&str>, secret: Option<&str>) -> Claim {
        Claim::Device {
            name: name.to_owned(),
            user: user.map(str::to_owned),
            secret: secret.map(|s| bytes::Bytes::copy_from_slice(s.as_bytes())),
        }
    }

    #[tokio::test]
    async fn passwords_tokens_and_the_anonymous() {
        let keeper = keeper();
        let cases = [
            (false, device("c", Some("meter-1"), Some("plain")), Ok("meter-1")),
            (false, device("meter-1", None, Some("plain")), Ok("meter-1")),
            (false, device("c", Some("meter-1"), Some("wrong")), Err(Refusal::Unauthorized)),
            (true, device("c", Some("meter-1"), Some("wrong")), Err(Refusal::Unauthorized)),
            (true, device("meter-1", None, None), Err(Refusal::Unauthorized)),
            (false, device("c", Some("hub"), Some("hashed")), Ok("hub")),
            (false, device("c", Some("hub"), Some("hashe")), Err(Refusal::Unauthorized)),
            (false, device("", None, Some("plain")), Ok("meter-1")),
            (false, device("x", Some("plain"), None), Ok("meter-1")),
            (false, device("x", None, None), Err(Refusal::Unauthorized)),
            (true, device("x", None, None), Ok("anonymous")),
            (true, device("x", Some("who"), Some("ever")), Ok("anonymous")),
        ];
        for (anonymous, claim, expected) in cases {
            let outcome = keeper.admit(&adapter(anonymous), &claim).await;
            assert_eq!(outcome.as_ref().map(|i| &*i.name), expected.as_ref().map(|n| *n), "{claim:?}");
        }
    }

    #[tokio::test]
    async fn reach_is_what_the_credential_says() {
        let keeper = keeper();
        let own = keeper.admit(&adapter(false), &device("meter-1", None, Some("plain"))).await.unwrap();
        assert!(own.reaches("meter-1") && !own.reaches("meter-2"));
        let hub = keeper.admit(&adapter(false), &device("c", Some("hub"), Some("hashed"))).await.unwrap();
        assert!(hub.reaches("meter-2"));
    }

    #[tokio::test]
    async fn signed_addresses_open_what_their_signers_may_give_away_until_they_expire() {
        let keeper = keeper();
        let (meter, hour) = (SigningKey::new(b"meter-1"), clock::now_s().unwrap() + 3_600);
        let ask = async |kind: Kind, stream: &str, query: &str| {
            let (stream, pass) = (protocols::media::StreamName::parse(stream).unwrap(), Pass::of_query(query));
            let claim = match kind {
                Kind::Publish => Claim::Publish { stream, pass },
                Kind::Play => Claim::Watch { stream, pass },
            };
            // Where everybody may come in without a word, a wrong word is still wrong.
            keeper.admit(&adapter(true), &claim).await.map(|identity| identity.name.to_string())
        };
        let query = meter.query(Kind::Play, "live/gate-1", hour);
        assert_eq!(ask(Kind::Play, "live/gate-1", &query).await, Ok("meter-1".to_owned()));
        assert_eq!(ask(Kind::Publish, "live/gate-1", &query).await, Err(Refusal::Unauthorized));
        assert_eq!(ask(Kind::Play, "live/gate-2", &query).await, Err(Refusal::Unauthorized));
        // Signed well, but by somebody to whom the stream does not belong.
        let foreign = meter.query(Kind::Play, "live/gate-2", hour);
        assert_eq!(ask(Kind::Play, "live/gate-2", &foreign).await, Err(Refusal::Unauthorized));
        let past = meter.query(Kind::Publish, "live/any", 1_767_225_600);
        assert!(
            matches!(ask(Kind::Publish, "live/any", &past).await, Err(Refusal::Forbidden(why)) if why.contains("expired"))
        );
        let console = keeper.link("live/gate-2").unwrap();
        assert_eq!(ask(Kind::Play, "live/gate-2", &console).await, Ok("console".to_owned()));
        assert_eq!(ask(Kind::Publish, "live/gate-2", &console).await, Err(Refusal::Unauthorized));
    }

    #[tokio::test]
    async fn what_may_be_pushed_without_a_key_may_not_be_watched_without_one() {
        let (keeper, stream) = (keeper(), |name| protocols::media::StreamName::parse(name).unwrap());
        let push =
            |name, key: Option<&str>| Claim::Publish { stream: stream(name), pass: key.map(str::to_owned).into() };
        let refused = Err(Refusal::Unauthorized);
        for (claim, expected) in [
            (push("jt/012345678901/1", None), Ok("anonymous")),
            (push("jt/112345678901/1", None), refused.clone()),
            // A wrong key is wrong everywhere.
            (push("jt/012345678901/1", Some("wrong")), refused.clone()),
            (Claim::Watch { stream: stream("jt/012345678901/1"), pass: Pass::default() }, refused),
        ] {
            let outcome = keeper.admit(&adapter(false), &claim).await;
            assert_eq!(
                outcome.as_ref().map(|identity| &*identity.name),
                expected.as_ref().map(|name| *name),
                "{claim:?}"
            );
        }
    }

    #[test]
    fn topics_by_pattern() {
        let keeper = keeper();
        let who = Identity { name: Arc::from("hub"), reach: Reach::Any };
        assert!(keeper.may_publish(&who, "c1", "site/c1/a/b"));
        assert!(!keeper.may_publish(&who, "c1", "site/c2/a"));
        assert!(keeper.may_subscribe(&who, "c1", "site/+/state"));
        assert!(!keeper.may_subscribe(&who, "c1", "site/#"));
        assert!(keeper.may_subscribe(&Identity::anonymous(), "c1", "#"));
        assert!(covers("#", "a/b") && !covers("#", "$SYS/x") && covers("a/#", "a") && !covers("a/+", "a/#"));
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert!(!format!("{:?}", keeper()).contains("plain"));
        assert!(!format!("{:?}", keeper()).contains("argon2id"));
    }
}
