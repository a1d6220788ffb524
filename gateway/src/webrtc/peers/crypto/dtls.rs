//! DTLS 1.2 (RFC 6347) by dimpl, with ring under it: TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 over X25519 or P-256.
//! dimpl wants the pieces of 1.3 (RFC 9147) too; they are there and not spoken.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dimpl::crypto::{
    Aad, ActiveKeyExchange, Buf, Cipher, Dtls12CipherSuite, Dtls13CipherSuite, HashAlgorithm, HashContext,
    HashProvider, HmacProvider, KeyProvider, NamedGroup, Nonce, SecureRandom, SignatureAlgorithm, SignatureVerifier,
    SigningKey, SupportedDtls12CipherSuite, SupportedDtls13CipherSuite, SupportedKxGroup, TmpBuf, check_verify_scheme,
};
use dimpl::{CryptoError as DtlsCryptoError, CryptoOperation};
use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{aead, digest, hmac, signature};
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
};
use str0m::crypto::{CryptoError, SrtpProvider};

use super::certificate::{self, Curve};
use super::srtp::Srtp;

/// Bytes of an AES-128-GCM tag.
const TAG_LEN: usize = 16;

// === the provider str0m asks ===

#[derive(Debug)]
pub(super) struct Dtls;

impl DtlsProvider for Dtls {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        certificate::generate().ok()
    }

    fn new_dtls(
        &self,
        cert: &DtlsCert,
        now: Instant,
        _version: DtlsVersion,
        _mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let cert = DtlsCert { certificate: cert.certificate.clone(), private_key: cert.private_key.clone() };
        Ok(Box::new(Talk(dimpl::Dtls::new_12(config()?, cert, now))))
    }
}

/// One for all sessions: dimpl proves the provider with test vectors whenever a configuration is built.
fn config() -> Result<Arc<dimpl::Config>, CryptoError> {
    static CONFIG: OnceLock<Arc<dimpl::Config>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = dimpl::crypto::CryptoProvider {
        kx_groups: &[&X25519, &P256],
        signature_verification: &Verifier,
        key_provider: &Keys,
        secure_random: &Random,
        hash_provider: &Hashes,
        hmac_provider: &Hmac,
        cipher_suites: &[&Aes128GcmSha256],
        dtls13_cipher_suites: &[&Aes128GcmSha256],
    };
    // ICE has shown that the peer is where it says it is: no cookie is needed.
    let built = dimpl::Config::builder().with_crypto_provider(provider).use_server_cookie(false).build();
    let built = built.map_err(|error| CryptoError::Other(format!("DTLS cannot be set up: {error}")))?;
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(built))))
}

struct Talk(dimpl::Dtls);

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Talk")
    }
}

impl DtlsInstance for Talk {
    fn set_active(&mut self, active: bool) {
        self.0.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.0.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        self.0.poll_output(buf)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.0.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<(), DtlsImplError> {
        self.0.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.0.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.0.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.0.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.0.close()
    }
}

// === the cipher suite ===

#[derive(Debug)]
struct Aes128GcmSha256;

impl SupportedDtls12CipherSuite for Aes128GcmSha256 {
    fn suite(&self) -> Dtls12CipherSuite {
        Dtls12CipherSuite::ECDHE_ECDSA_AES128_GCM_SHA256
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }

    /// MAC, cipher key, implicit part of the nonce (RFC 5288, 3).
    fn key_lengths(&self) -> (usize, usize, usize) {
        (0, 16, 4)
    }

    fn explicit_nonce_len(&self) -> usize {
        8
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn create_cipher(&self, key: &[u8]) -> Result<Box<dyn Cipher>, DtlsCryptoError> {
        gcm(key)
    }
}

impl SupportedDtls13CipherSuite for Aes128GcmSha256 {
    fn suite(&self) -> Dtls13CipherSuite {
        Dtls13CipherSuite::AES_128_GCM_SHA256
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }

    fn key_len(&self) -> usize {
        16
    }

    fn iv_len(&self) -> usize {
        12
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn create_cipher(&self, key: &[u8]) -> Result<Box<dyn Cipher>, DtlsCryptoError> {
        gcm(key)
    }

    /// The mask of a record's number (RFC 9147, 4.2.3).
    fn encrypt_sn(&self, sn_key: &[u8], sample: &[u8; 16]) -> [u8; 16] {
        let mut mask = [0; 16];
        Srtp.srtp_aes_128_ecb_round(sn_key, sample, &mut mask);
        mask
    }
}

fn gcm(key: &[u8]) -> Result<Box<dyn Cipher>, DtlsCryptoError> {
    let key = aead::UnboundKey::new(&aead::AES_128_GCM, key);
    let key = key.map_err(|_| DtlsCryptoError::OperationFailed(CryptoOperation::Encrypt))?;
    Ok(Box::new(Gcm(aead::LessSafeKey::new(key))))
}

struct Gcm(aead::LessSafeKey);

impl std::fmt::Debug for Gcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gcm")
    }
}

impl Cipher for Gcm {
    fn encrypt(&mut self, text: &mut Buf, aad: Aad, nonce: Nonce) -> Result<(), DtlsCryptoError> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
        let tag = self.0.seal_in_place_separate_tag(nonce, aead::Aad::from(&*aad), text);
        let tag = tag.map_err(|_| DtlsCryptoError::OperationFailed(CryptoOperation::Encrypt))?;
        text.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn decrypt(&mut self, sealed: &mut TmpBuf<'_>, aad: Aad, nonce: Nonce) -> Result<(), DtlsCryptoError> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
        let opened = self.0.open_in_place(nonce, aead::Aad::from(&*aad), sealed.as_mut());
        let len = opened.map(|text| text.len());
        sealed.truncate(len.map_err(|_| DtlsCryptoError::OperationFailed(CryptoOperation::Decrypt))?);
        Ok(())
    }
}

// === the key exchange ===

#[derive(Debug)]
struct X25519;

#[derive(Debug)]
struct P256;

impl SupportedKxGroup for X25519 {
    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }

    fn start_exchange(&self, buf: Buf) -> Result<Box<dyn ActiveKeyExchange>, DtlsCryptoError> {
        Exchange::start(&agreement::X25519, NamedGroup::X25519, buf)
    }
}

impl SupportedKxGroup for P256 {
    fn name(&self) -> NamedGroup {
        NamedGroup::Secp256r1
    }

    fn start_exchange(&self, buf: Buf) -> Result<Box<dyn ActiveKeyExchange>, DtlsCryptoError> {
        Exchange::start(&agreement::ECDH_P256, NamedGroup::Secp256r1, buf)
    }
}

#[derive(Debug)]
struct Exchange {
    algorithm: &'static agreement::Algorithm,
    group: NamedGroup,
    private: EphemeralPrivateKey,
    public: Buf,
}

impl Exchange {
    fn start(
        algorithm: &'static agreement::Algorithm,
        group: NamedGroup,
        mut public: Buf,
    ) -> Result<Box<dyn ActiveKeyExchange>, DtlsCryptoError> {
        let failed = |_| DtlsCryptoError::UnsupportedKeyExchangeGroup(group);
        let private = EphemeralPrivateKey::generate(algorithm, &SystemRandom::new()).map_err(failed)?;
        public.clear();
        public.extend_from_slice(private.compute_public_key().map_err(failed)?.as_ref());
        Ok(Box::new(Self { algorithm, group, private, public }))
    }
}

impl ActiveKeyExchange for Exchange {
    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn complete(self: Box<Self>, peer: &[u8], out: &mut Buf) -> Result<(), DtlsCryptoError> {
        let group = self.group;
        let peer = UnparsedPublicKey::new(self.algorithm, peer);
        out.clear();
        agreement::agree_ephemeral(self.private, &peer, |shared| out.extend_from_slice(shared))
            .map_err(|_| DtlsCryptoError::InvalidPublicKey(group))
    }

    fn group(&self) -> NamedGroup {
        self.group
    }
}

// === signatures ===

#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, key: &[u8]) -> Result<Box<dyn SigningKey>, DtlsCryptoError> {
        let algorithm = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = signature::EcdsaKeyPair::from_pkcs8(algorithm, key, &SystemRandom::new());
        Ok(Box::new(OwnKey(pair.map_err(|_| DtlsCryptoError::InvalidPrivateKey)?)))
    }
}

struct OwnKey(signature::EcdsaKeyPair);

impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnKey")
    }
}

impl SigningKey for OwnKey {
    fn sign(&mut self, data: &[u8], hash: HashAlgorithm, out: &mut Buf) -> Result<(), DtlsCryptoError> {
        if hash != HashAlgorithm::SHA256 {
            return Err(DtlsCryptoError::SigningKeyUnsupportedHash { group: NamedGroup::Secp256r1, hash });
        }
        let signed = self.0.sign(&SystemRandom::new(), data);
        let signed = signed.map_err(|_| DtlsCryptoError::OperationFailed(CryptoOperation::Sign))?;
        out.clear();
        out.extend_from_slice(signed.as_ref());
        Ok(())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }

    fn supported_hash_algorithms(&self) -> &[HashAlgorithm] {
        &[HashAlgorithm::SHA256]
    }
}

#[derive(Debug)]
struct Verifier;

impl SignatureVerifier for Verifier {
    fn verify_signature(
        &self,
        certificate: &[u8],
        data: &[u8],
        given: &[u8],
        hash: HashAlgorithm,
        algorithm: SignatureAlgorithm,
    ) -> Result<(), DtlsCryptoError> {
        let (curve, key) = certificate::public_key(certificate).ok_or(DtlsCryptoError::CertificateParseFailed)?;
        let group = match curve {
            Curve::P256 => NamedGroup::Secp256r1,
            Curve::P384 => NamedGroup::Secp384r1,
        };
        check_verify_scheme(algorithm, hash, group)?;
        let scheme: &'static dyn signature::VerificationAlgorithm = match (curve, hash) {
            (Curve::P256, HashAlgorithm::SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
            (Curve::P256, _) => &signature::ECDSA_P256_SHA256_ASN1,
            (Curve::P384, HashAlgorithm::SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
            (Curve::P384, _) => &signature::ECDSA_P384_SHA256_ASN1,
        };
        signature::UnparsedPublicKey::new(scheme, key)
            .verify(data, given)
            .map_err(|_| DtlsCryptoError::SignatureVerificationFailed { signature: algorithm, hash, group })
    }
}

// === randomness, sums ===

#[derive(Debug)]
struct Random;

impl SecureRandom for Random {
    fn fill(&self, buf: &mut [u8]) -> Result<(), DtlsCryptoError> {
        let failed = |_| DtlsCryptoError::OperationFailed(CryptoOperation::Sign);
        SystemRandom::new().fill(buf).map_err(failed)
    }
}

#[derive(Debug)]
struct Hashes;

impl HashProvider for Hashes {
    fn create_hash(&self, algorithm: HashAlgorithm) -> Box<dyn HashContext> {
        let sum = if algorithm == HashAlgorithm::SHA384 { &digest::SHA384 } else { &digest::SHA256 };
        Box::new(Sum(digest::Context::new(sum)))
    }
}

struct Sum(digest::Context);

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sum")
    }
}

impl HashContext for Sum {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn clone_and_finalize(&self, out: &mut Buf) {
        out.clear();
        out.extend_from_slice(self.0.clone().finish().as_ref());
    }
}

#[derive(Debug)]
struct Hmac;

impl HmacProvider for Hmac {
    fn hmac(&self, hash: HashAlgorithm, key: &[u8], data: &[u8], out: &mut [u8]) -> Result<usize, DtlsCryptoError> {
        let algorithm = match hash {
            HashAlgorithm::SHA256 => hmac::HMAC_SHA256,
            HashAlgorithm::SHA384 => hmac::HMAC_SHA384,
            other => return Err(DtlsCryptoError::UnsupportedHmacHash(other)),
        };
        let tag = hmac::sign(&hmac::Key::new(algorithm, key), data);
        let room = out.get_mut(..tag.as_ref().len()).ok_or(DtlsCryptoError::UnsupportedHmacHash(hash))?;
        room.copy_from_slice(tag.as_ref());
        Ok(room.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// dimpl holds the provider against vectors of its own: sums, PRF, signatures, key exchange.
    #[test]
    fn dimpl_finds_nothing_wrong_with_the_provider() {
        config().unwrap();
    }

    #[test]
    fn a_point_that_is_none_is_refused() {
        for group in [&X25519 as &dyn SupportedKxGroup, &P256] {
            let exchange = group.start_exchange(Buf::new()).unwrap();
            assert!(exchange.complete(&[0; 32], &mut Buf::new()).is_err());
        }
    }
}
