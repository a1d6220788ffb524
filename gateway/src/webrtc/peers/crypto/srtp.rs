//! SRTP's ciphers: AES-GCM (RFC 7714) on ring; counter mode (RFC 3711, 4.1.1), which ring has not, on single AES blocks.

use std::fmt;

use aes::cipher::{Block, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use ring::aead::{self, AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use str0m::crypto::{
    AeadAes128GcmCipher, AeadAes256GcmCipher, Aes128CmSha1_80Cipher, CryptoError, SrtpProvider, SupportedAeadAes128Gcm,
    SupportedAeadAes256Gcm, SupportedAes128CmSha1_80,
};

/// Blocks whose key stream is made at a time: the processor's AES units work on so many side by side.
const BLOCKS_AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Srtp;

impl SrtpProvider for Srtp {
    fn aes_128_cm_sha1_80(&self) -> &'static dyn SupportedAes128CmSha1_80 {
        &Srtp
    }

    fn aead_aes_128_gcm(&self) -> &'static dyn SupportedAeadAes128Gcm {
        &Srtp
    }

    fn aead_aes_256_gcm(&self) -> &'static dyn SupportedAeadAes256Gcm {
        &Srtp
    }

    fn srtp_aes_128_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        if let Ok(cipher) = Aes128::new_from_slice(key) {
            round(&cipher, input, output);
        }
    }

    fn srtp_aes_256_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        if let Ok(cipher) = Aes256::new_from_slice(key) {
            round(&cipher, input, output);
        }
    }
}

/// One block: what the key derivation (RFC 3711, 4.3.3) is made of.
fn round<C: BlockCipherEncrypt>(cipher: &C, input: &[u8], output: &mut [u8]) {
    let mut block = Block::<C>::default();
    for (to, from) in block.iter_mut().zip(input) {
        *to = *from;
    }
    cipher.encrypt_block(&mut block);
    for (to, from) in output.iter_mut().zip(&block) {
        *to = *from;
    }
}

impl SupportedAes128CmSha1_80 for Srtp {
    fn create_cipher(&self, key: [u8; 16], _encrypt: bool) -> Box<dyn Aes128CmSha1_80Cipher> {
        Box::new(CounterMode(Aes128::new(&key.into())))
    }
}

impl SupportedAeadAes128Gcm for Srtp {
    fn create_cipher(&self, key: [u8; 16], _encrypt: bool) -> Box<dyn AeadAes128GcmCipher> {
        Box::new(Gcm::new(&AES_128_GCM, &key))
    }
}

impl SupportedAeadAes256Gcm for Srtp {
    fn create_cipher(&self, key: [u8; 32], _encrypt: bool) -> Box<dyn AeadAes256GcmCipher> {
        Box::new(Gcm::new(&AES_256_GCM, &key))
    }
}

// === counter mode ===

struct CounterMode(Aes128);

impl fmt::Debug for CounterMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CounterMode")
    }
}

impl CounterMode {
    fn apply(&self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) {
        let mut counter = u128::from_be_bytes(*iv);
        let mut stream = [Block::<Aes128>::default(); BLOCKS_AT_ONCE];
        for (input, output) in input.chunks(16 * BLOCKS_AT_ONCE).zip(output.chunks_mut(16 * BLOCKS_AT_ONCE)) {
            for block in &mut stream {
                *block = counter.to_be_bytes().into();
                counter = counter.wrapping_add(1);
            }
            self.0.encrypt_blocks(&mut stream);
            for ((to, from), mask) in output.iter_mut().zip(input).zip(stream.iter().flatten()) {
                *to = from ^ mask;
            }
        }
    }
}

impl Aes128CmSha1_80Cipher for CounterMode {
    fn encrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.apply(iv, input, output);
        Ok(())
    }

    fn decrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.apply(iv, input, output);
        Ok(())
    }
}

// === AES-GCM ===

/// `None` only for a key of the wrong length, which the types above do not let in.
struct Gcm(Option<LessSafeKey>);

impl fmt::Debug for Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gcm")
    }
}

impl Gcm {
    fn new(algorithm: &'static aead::Algorithm, key: &[u8]) -> Self {
        Self(UnboundKey::new(algorithm, key).ok().map(LessSafeKey::new))
    }

    fn key(&self) -> Result<&LessSafeKey, CryptoError> {
        self.0.as_ref().ok_or_else(|| CryptoError::Other("no key".to_owned()))
    }

    fn seal(&self, iv: &[u8; 12], aad: &[u8], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        let short = || CryptoError::Other("no room for the tag".to_owned());
        let (text, tag_out) = output.split_at_mut_checked(input.len()).ok_or_else(short)?;
        text.copy_from_slice(input);
        let sealed = self.key()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(*iv), Aad::from(aad), text);
        let tag = sealed.map_err(|_| CryptoError::Other("AES-GCM cannot encrypt".to_owned()))?;
        tag_out.get_mut(..tag.as_ref().len()).ok_or_else(short)?.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Bytes of text.
    fn open(&self, iv: &[u8; 12], aads: &[&[u8]], input: &[u8], output: &mut [u8]) -> Result<usize, CryptoError> {
        let wrong = |what: &str| CryptoError::Other(what.to_owned());
        let at = input.len().checked_sub(aead::MAX_TAG_LEN).ok_or_else(|| wrong("shorter than its tag"))?;
        let (text, tag) = input.split_at_checked(at).ok_or_else(|| wrong("shorter than its tag"))?;
        let out = output.get_mut(..text.len()).ok_or_else(|| wrong("no room for the text"))?;
        out.copy_from_slice(text);
        let joined;
        let aad: &[u8] = if let [one] = aads {
            one
        } else {
            joined = aads.concat();
            &joined
        };
        let tag = aead::Tag::try_from(tag).map_err(|_| wrong("a tag of a wrong length"))?;
        let nonce = Nonce::assume_unique_for_key(*iv);
        let opened = self.key()?.open_in_place_separate_tag(nonce, Aad::from(aad), tag, out, 0..);
        opened.map(|text| text.len()).map_err(|_| wrong("the tag does not fit"))
    }
}

impl AeadAes128GcmCipher for Gcm {
    fn encrypt(&mut self, iv: &[u8; 12], aad: &[u8], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.seal(iv, aad, input, output)
    }

    fn decrypt(
        &mut self,
        iv: &[u8; 12],
        aads: &[&[u8]],
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, CryptoError> {
        self.open(iv, aads, input, output)
    }
}

impl AeadAes256GcmCipher for Gcm {
    fn encrypt(&mut self, iv: &[u8; 12], aad: &[u8], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.seal(iv, aad, input, output)
    }

    fn decrypt(
        &mut self,
        iv: &[u8; 12],
        aads: &[&[u8]],
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, CryptoError> {
        self.open(iv, aads, input, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    /// RFC 3711, appendix B.2: the blocks of the key stream that it prints.
    #[test]
    fn the_key_stream_of_the_standard() {
        let key = bytes("2b7e151628aed2a6abf7158809cf4f3c");
        let mut cipher = SupportedAes128CmSha1_80::create_cipher(&Srtp, key, true);
        let mut stream = vec![0; 16 * 0xff02];
        let zeros = vec![0; stream.len()];
        cipher.encrypt(&bytes("f0f1f2f3f4f5f6f7f8f9fafbfcfd0000"), &zeros, &mut stream).unwrap();
        assert_eq!(stream[..16], bytes::<16>("e03ead0935c95e80e166b16dd92b4eb4"));
        assert_eq!(stream[16..32], bytes::<16>("d23513162b02d0f72a43a2fe4a5f97ab"));
        assert_eq!(stream[16 * 0xfeff..16 * 0xff00], bytes::<16>("ec8cdf7398607cb0f2d21675ea9ea1e4"));
        assert_eq!(stream[16 * 0xff00..16 * 0xff01], bytes::<16>("362b7c3c6773516318a077d7fc5073ae"));
    }

    /// RFC 3711, appendix B.3: the cipher key derived from the master key.
    #[test]
    fn a_round_of_the_key_derivation() {
        let mut out = [0; 16];
        let master = bytes::<16>("e1f97a0d3e018be0d64fa32c06de4139");
        Srtp.srtp_aes_128_ecb_round(&master, &bytes::<16>("0ec675ad498afeebb6960b3aabe60000"), &mut out);
        assert_eq!(out, bytes("c61e7a93744f39ee10734afe3ff7a087"));
    }

    #[test]
    fn what_gcm_seals_it_opens_and_nothing_else() {
        let mut cipher = SupportedAeadAes256Gcm::create_cipher(&Srtp, [7; 32], true);
        let (iv, aad) = ([3; 12], [1; 12]);
        let mut sealed = vec![0; 100 + 16];
        cipher.encrypt(&iv, &aad, &[9; 100], &mut sealed).unwrap();
        let mut text = vec![0; 100];
        assert_eq!(cipher.decrypt(&iv, &[&aad[..5], &aad[5..]], &sealed, &mut text).unwrap(), 100);
        assert_eq!(text, [9; 100]);
        sealed[50] ^= 1;
        assert!(cipher.decrypt(&iv, &[&aad], &sealed, &mut text).is_err());
        assert!(cipher.decrypt(&iv, &[&aad], &sealed[..15], &mut text).is_err());
        assert!(cipher.decrypt(&iv, &[&aad], &sealed, &mut text[..50]).is_err());
    }
}
