//! What a configuration says of who may come in: certificates, secrets, signing keys, hooks, the console's door.

use std::collections::HashSet;
use std::path::Path;

use super::plan::Check;
use super::{Adapter, Credential, Hooks};
use crate::credentials;
use crate::hooks;
use crate::signing::SigningKey;
use crate::tls::{ServerTls, TlsError};
use crate::transport::Listen;

/// Shorter keys can be guessed from one signed address.
const SIGN_KEY_LEN_MIN: usize = 16;

impl Check<'_> {
    pub(super) fn tls(&mut self, key: &str, adapter: &Adapter, listen: &Listen) -> Option<ServerTls> {
        match (listen, &adapter.cert_file, &adapter.key_file) {
            (Listen::Tls(_), Some(cert), Some(private)) => return self.server_tls(key, cert, private),
            (Listen::Tls(_), ..) => self.problem(format!("{key}.listen"), "tls:// needs cert_file and key_file"),
            (_, None, None) => {}
            _ => self.problem(format!("{key}.cert_file"), "only tls:// uses a certificate"),
        }
        None
    }

    /// Reads a listener's certificate and key; a problem stands at the file that has it.
    fn server_tls(&mut self, key: &str, cert: &Path, private: &Path) -> Option<ServerTls> {
        match ServerTls::load(cert, private) {
            Ok(tls) => return Some(tls),
            Err(error) => {
                let of_key = matches!(&error, TlsError::File { path, .. } if path == private);
                let file = if of_key { "key_file" } else { "cert_file" };
                self.problem(format!("{key}.{file}"), error.to_string());
            }
        }
        None
    }

    pub(super) fn credentials(&mut self) -> Vec<credentials::Credential> {
        let mut names = HashSet::new();
        let mut ready = Vec::new();
        for (at, credential) in self.config.credentials.iter().enumerate() {
            let key = format!("credential[{at}]");
            if credential.name.is_empty() || !names.insert(credential.name.as_str()) {
                self.problem(format!("{key}.name"), "each credential needs a name of its own");
            }
            match secret(credential).and_then(|secret| Ok((secret, signing(credential)?))) {
                Ok((secret, signing)) => ready.push(credentials::Credential {
                    name: credential.name.clone(),
                    secret,
                    signing,
                    devices: credential.devices.clone(),
                    publish: credential.publish.clone(),
                    subscribe: credential.subscribe.clone(),
                    push: credential.push.clone(),
                    watch: credential.watch.clone(),
                }),
                Err(what) => self.problem(key, what),
            }
        }
        ready
    }

    /// The console's door; its certificate, where it has one.
    pub(super) fn admin(&mut self) -> Option<ServerTls> {
        let admin = &self.config.admin;
        if admin.listen.is_empty() {
            return None;
        }
        match format!("tcp://{}", admin.listen).parse::<Listen>() {
            Ok(listen) if !listen.is_on_the_box() && admin.token_file.is_none() => {
                self.problem("admin.listen", "can be reached from off the box: name a token_file");
            }
            Ok(_) => {}
            Err(_) => self.problem("admin.listen", format!("`{}` is not HOST:PORT", admin.listen)),
        }
        if let Some(file) = admin.token_file.as_deref().filter(|f| !f.is_file()) {
            self.problem("admin.token_file", format!("{} is not a file", file.display()));
        }
        match (&admin.cert_file, &admin.key_file) {
            (Some(cert), Some(key)) => self.server_tls("admin", cert, key),
            (None, None) => None,
            _ => {
                self.problem("admin.cert_file", "https needs both cert_file and key_file");
                None
            }
        }
    }

    /// Ranges, and whether something could be asked at every URL.
    pub(super) fn hooks(&mut self) {
        let Hooks { timeout_ms, retries, idle_timeout_seconds, .. } = self.config.hooks;
        if !(100..=60_000).contains(&timeout_ms) {
            self.problem("hooks.timeout_ms", format!("{timeout_ms} is out of range: 100 to 60000 ms"));
        }
        if retries > 10 {
            self.problem("hooks.retries", format!("{retries} is out of range: 0 to 10"));
        }
        if !(1..=86_400).contains(&idle_timeout_seconds) {
            let what = format!("{idle_timeout_seconds} is out of range: 1 to 86400 seconds");
            self.problem("hooks.idle_timeout_seconds", what);
        }
        if let Err((key, error)) = hooks::Hooks::check(&self.config.hooks) {
            self.problem(format!("hooks.{key}"), error.to_string());
        }
    }
}

fn secret(credential: &Credential) -> Result<credentials::Secret, String> {
    match (&credential.secret_file, &credential.secret_env, &credential.secret_hash) {
        (Some(file), None, None) => plain_or_hash(&first_line("secret_file", file)?),
        (None, Some(name), None) => plain_or_hash(&variable("secret_env", name)?),
        (None, None, Some(hash)) => credentials::Secret::hash(hash).map_err(|e| format!("secret_hash: {e}")),
        // Who only signs addresses needs no secret.
        (None, None, None) if credential.sign_file.is_some() || credential.sign_env.is_some() => {
            Ok(credentials::Secret::None)
        }
        _ => Err("give exactly one of secret_file, secret_env and secret_hash".to_owned()),
    }
}

/// The key that signs addresses, if there is one.
fn signing(credential: &Credential) -> Result<Option<SigningKey>, String> {
    let key = match (&credential.sign_file, &credential.sign_env) {
        (None, None) => return Ok(None),
        (Some(file), None) => first_line("sign_file", file)?,
        (None, Some(name)) => variable("sign_env", name)?,
        _ => return Err("give one of sign_file and sign_env".to_owned()),
    };
    if key.len() < SIGN_KEY_LEN_MIN {
        return Err(format!("the key to sign with has {} bytes; at least {SIGN_KEY_LEN_MIN} are right", key.len()));
    }
    Ok(Some(SigningKey::new(key.as_bytes())))
}

fn first_line(what: &str, file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{what} {}: {e}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn variable(what: &str, name: &str) -> Result<String, String> {
    let text = std::env::var(name).map_err(|_| format!("{what}: the environment has no {name}"))?;
    Ok(text.trim().to_owned())
}

fn plain_or_hash(text: &str) -> Result<credentials::Secret, String> {
    match text {
        "" => Err("the secret is empty".to_owned()),
        hash if hash.starts_with("$argon2") => credentials::Secret::hash(hash),
        plain => Ok(credentials::Secret::of(plain.as_bytes())),
    }
}
