//! A receipt: the numbers that a consumer behind the broker has, so that the gateway may forget them. `docs/native.md` says
//! where it goes and when.

use device_models::Class;
use serde::Deserialize;
use serde_json::json;

/// The longest receipt that is read, bytes.
const BYTES_MAX: usize = 1024;

/// The numbers `first..=last` of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub epoch: u64,
    pub class: Class,
    pub first: u64,
    pub last: u64,
}

#[derive(Debug, Deserialize)]
struct Said {
    epoch: String,
    class: String,
    first: u64,
    last: u64,
}

// === impl Receipt ===

impl Receipt {
    pub fn topic(gateway: &str) -> String {
        format!("sg/v1/{gateway}/ack")
    }

    pub fn json(&self) -> String {
        let Self { epoch, class, first, last } = self;
        json!({ "epoch": format!("{epoch:016x}"), "class": class.topic(), "first": first, "last": last }).to_string()
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Self, String> {
        if payload.len() > BYTES_MAX {
            return Err(format!("a receipt has at most {BYTES_MAX} bytes, this has {}", payload.len()));
        }
        let Said { epoch, class, first, last } = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        let epoch = u64::from_str_radix(&epoch, 16).map_err(|error| format!("`epoch`: {error}"))?;
        let known = Class::ALL.into_iter().find(|known| known.topic() == class);
        let class = known.ok_or_else(|| format!("`class` is no class: {class}"))?;
        if first > last {
            return Err(format!("from {first} to {last} there is nothing"));
        }
        Ok(Self { epoch, class, first, last })
    }

    /// One receipt for both, if the other goes on where this ends.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows =
            (self.epoch, self.class) == (next.epoch, next.class) && self.last.checked_add(1) == Some(next.first);
        follows.then_some(Self { last: next.last, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_reads_as_it_is_written_and_nonsense_is_none() {
        let receipt = Receipt { epoch: 0x1234_5678_90ab_cdef, class: Class::Live, first: 41, last: 48 };
        assert_eq!(receipt.json(), r#"{"class":"live","epoch":"1234567890abcdef","first":41,"last":48}"#);
        assert_eq!(Receipt::parse(receipt.json().as_bytes()), Ok(receipt));
        let next = Receipt { first: 49, last: 50, ..receipt };
        assert_eq!(receipt.joined(&next), Some(Receipt { last: 50, ..receipt }));
        assert_eq!(receipt.joined(&Receipt { first: 50, ..next }), None);
        for wrong in ["", "{}", r#"{"epoch":"x","class":"live","first":1,"last":1}"#] {
            assert!(Receipt::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Receipt::parse(Receipt { first: 2, last: 1, ..receipt }.json().as_bytes()).is_err());
        assert!(Receipt::parse(&[b' '; BYTES_MAX + 1]).is_err());
    }
}
