//! An authority of the test's own, and certificates for `localhost` and 127.0.0.1.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::run_ok;

/// Elliptic keys, valid for two days.
const KEY: [&str; 7] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];

/// An authority; its folder goes with it.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

/// The files of one certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { folder: TempDir::new().expect("a temporary folder") };
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\n";
        std::fs::write(authority.path("names"), names).expect("the names");
        let (cert, key) = (authority.text("ca.pem"), authority.text("ca.key"));
        let own = ["req", "-x509", "-subj", "/CN=test authority", "-keyout", &key, "-out", &cert];
        run_ok("openssl", &[&own[..], &KEY[..]].concat());
        authority
    }

    /// The authority's certificate.
    pub fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A new certificate of the authority's.
    pub fn certify(&self, name: &str) -> Certificate {
        let text = |end: &str| self.text(&format!("{name}.{end}"));
        let (cert, key, request) = (text("pem"), text("key"), text("csr"));
        let ask = ["req", "-new", "-subj", "/CN=gateway", "-keyout", &key, "-out", &request];
        run_ok("openssl", &[&ask[..], &KEY[..5]].concat());
        let (ca, ca_key, names) = (self.text("ca.pem"), self.text("ca.key"), self.text("names"));
        let sign = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
        run_ok("openssl", &[&sign[..], &["-days", "2", "-extfile", &names, "-out", &cert]].concat());
        Certificate { cert: cert.into(), key: key.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificate {
    /// The two lines of a listener's configuration.
    pub fn toml(&self) -> String {
        format!("cert_file = \"{}\"\nkey_file = \"{}\"\n", self.cert.display(), self.key.display())
    }

    /// Takes the place of another, as a renewal does.
    pub fn replace(&self, other: &Self) {
        let over = |from: &Path, to: &Path| std::fs::copy(from, to).expect("to copy a certificate");
        over(&self.key, &other.key);
        over(&self.cert, &other.cert);
    }
}
