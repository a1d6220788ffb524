//! TLS, both sides: whom we believe as a client, which certificate we show as a server. The one owner of rustls'
//! configurations, built on ring alone, so that no process-wide provider decides.
//!
//! A listener's certificate is read again when its files have changed: at the next handshake (at most once a second) and
//! at SIGHUP. Files that make no certificate are said and counted, and the one in use stays. Must not be in here: who may
//! come in, what a connection is for.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tracing::{info, warn};

use crate::metrics::{Figure, Metrics};
use crate::threads::Tasks;

/// How often a listener looks whether its certificate's files have changed, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the certificates of a link come from.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Certificate authorities, PEM; none: the built-in web roots.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain and key, PEM; both or neither.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Why no TLS connection can be set up with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path} holds no certificate")]
    Empty { path: PathBuf },
    #[error("the key in {key} and the certificate in {cert} do not belong together: {reason}")]
    Pair { cert: PathBuf, key: PathBuf, reason: String },
    #[error("a client certificate needs both cert_file and key_file")]
    Half,
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

// === as a client ===

impl Trust {
    /// The client configuration: TLS 1.2 and 1.3, the server's certificate verified against the authorities.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder.with_client_auth_cert(certificates(cert)?, private_key(key)?)?,
            _ => return Err(TlsError::Half),
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
            }
        }
        Ok(roots)
    }
}

// === as a server ===

/// The server's side of one listener. Cheap to clone; all clones show the same certificate.
#[derive(Clone)]
pub struct ServerTls {
    inner: Arc<Inner>,
}

struct Inner {
    cert_file: PathBuf,
    key_file: PathBuf,
    config: Arc<ServerConfig>,
    shown: Arc<Shown>,
    looked: Mutex<Looked>,
}

/// The certificate that the next handshake shows.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

/// When the files were last looked at, and what they were then.
#[derive(Debug)]
struct Looked {
    at: Instant,
    stamps: [Option<Stamp>; 2],
}

/// Tells one content of a file from another: modified (seconds, nanoseconds), length, inode.
type Stamp = (i64, i64, u64, u64);

impl ServerTls {
    /// Reads certificate chain and key (PEM).
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let stamps = [stamp(cert_file), stamp(key_file)];
        let shown = Arc::new(Shown(RwLock::new(Arc::new(certified(cert_file, key_file)?))));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        let looked = Mutex::new(Looked { at: Instant::now(), stamps });
        let (cert_file, key_file) = (cert_file.to_owned(), key_file.to_owned());
        Ok(Self { inner: Arc::new(Inner { cert_file, key_file, config: Arc::new(config), shown, looked }) })
    }

    /// A handshake with a client, with the newest certificate. It has no time limit of its own.
    pub async fn accept(&self, socket: TcpStream, tasks: &Tasks, metrics: &Metrics) -> Accept<TcpStream> {
        if self.looked().at.elapsed() >= LOOK_EVERY {
            self.look_again(tasks, metrics).await;
        }
        TlsAcceptor::from(Arc::clone(&self.inner.config)).accept(socket)
    }

    /// Reads the files again if they have changed.
    pub async fn look_again(&self, tasks: &Tasks, metrics: &Metrics) {
        let (tls, metrics) = (self.clone(), metrics.clone());
        if let Err(error) = tasks.blocking(move || tls.look(&metrics)).await {
            warn!(%error, "cannot look at a certificate's files");
        }
    }

    fn look(&self, metrics: &Metrics) {
        let Inner { cert_file, key_file, shown, .. } = &*self.inner;
        let stamps = [stamp(cert_file), stamp(key_file)];
        {
            let mut looked = self.looked();
            looked.at = Instant::now();
            // Also when what is there now cannot be used: it is said once, not at every handshake.
            if std::mem::replace(&mut looked.stamps, stamps) == stamps {
                return;
            }
        }
        let result = match certified(cert_file, key_file) {
            Ok(certified) => {
                *shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                info!(cert_file = %cert_file.display(), "a new certificate is in use");
                "ok"
            }
            Err(error) => {
                warn!(%error, "the changed certificate cannot be used; the one before stays");
                "failed"
            }
        };
        metrics.add(Figure::TlsReloads, &[result], 1);
    }

    fn looked(&self) -> MutexGuard<'_, Looked> {
        self.inner.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Shows the files, never what is in them.
impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("cert_file", &self.inner.cert_file).finish_non_exhaustive()
    }
}

// === files ===

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(certificates(cert)?, private_key(key)?, &provider()).map_err(|error| TlsError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| unreadable(path, &error))?;
    if certificates.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(certificates) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    use rustls::pki_types::pem::Error;
    let reason = match error {
        Error::NoItemsFound => "it holds no key in PEM form".to_owned(),
        Error::Io(error) if error.kind() == io::ErrorKind::NotFound => "there is no such file".to_owned(),
        other => other.to_string(),
    };
    TlsError::File { path: path.to_owned(), reason }
}

/// `None` for a file that is not there.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino()))
}
