//! The record on disk: one message, self-contained, so that a log can be read without the models it was written with.

use std::sync::Arc;

use prost::Message as _;

use super::WireError;
use super::generated as pb;
use super::value::{Said, from_said, to_said};
use crate::message::Message;

/// First byte of a record that stands alone.
pub(super) const PLAIN: u8 = 1;

/// The message as it stands in the log: the version byte, then a protobuf `Record`.
pub fn encode_message(message: &Message) -> Vec<u8> {
    use pb::record::Body;
    let body = match to_said(&message.body) {
        Said::Samples(v) => Body::Samples(v),
        Said::Event(v) => Body::Event(v),
        Said::Reply(v) => Body::Reply(v),
        Said::Presence(v) => Body::Presence(v),
        Said::Gap(v) => Body::Gap(v),
    };
    let record = pb::Record {
        thing: message.thing.as_ref().to_owned(),
        model: message.model.as_ref().to_owned(),
        time_us: message.time_us,
        late_us: message.received_us.wrapping_sub(message.time_us),
        body: Some(body),
    };
    let mut bytes = Vec::with_capacity(1 + record.encoded_len());
    bytes.push(PLAIN);
    // Into a Vec it cannot fail: the only error is a full buffer.
    record.encode_raw(&mut bytes);
    bytes
}

/// What [`encode_message`] wrote. Takes memory in proportion to `bytes`.
pub fn decode_message(bytes: &[u8]) -> Result<Message, WireError> {
    use pb::record::Body;
    let (version, record) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != PLAIN {
        return Err(WireError::Version(u32::from(*version)));
    }
    let record = pb::Record::decode(record)?;
    let said = match record.body.ok_or(WireError::Missing("the record's body"))? {
        Body::Samples(v) => Said::Samples(v),
        Body::Event(v) => Said::Event(v),
        Body::Reply(v) => Said::Reply(v),
        Body::Presence(v) => Said::Presence(v),
        Body::Gap(v) => Said::Gap(v),
    };
    Ok(Message {
        thing: Arc::from(record.thing),
        model: Arc::from(record.model),
        time_us: record.time_us,
        received_us: record.time_us.wrapping_add(record.late_us),
        body: from_said(said)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Body, Quality, Sample};
    use crate::value::Value;
    use crate::wire::tests::{message, same};

    proptest! {
        #[test]
        fn every_message_comes_back(message in message()) {
            let back = decode_message(&encode_message(&message)).unwrap();
            prop_assert!(same(&message, &back), "{message:?} became {back:?}");
        }

        #[test]
        fn noise_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode_message(&bytes) {
                let back = decode_message(&encode_message(&message)).unwrap();
                prop_assert!(same(&message, &back));
            }
        }

        #[test]
        fn a_torn_record_never_panics(message in message(), cut in any::<prop::sample::Index>()) {
            let bytes = encode_message(&message);
            let _torn = decode_message(&bytes[..cut.index(bytes.len())]);
        }
    }

    #[test]
    fn a_value_nested_deeper_than_the_format_comes_back() {
        let mut value = Value::Int(7);
        for _ in 0..100 {
            value = Value::Array(vec![value]);
        }
        let message = Message {
            thing: "t".into(),
            model: "m".into(),
            time_us: 1,
            received_us: 2,
            body: Body::Properties(vec![Sample { alias: 1, name: "deep".into(), value, quality: Quality::Good }]),
        };
        assert_eq!(decode_message(&encode_message(&message)), Ok(message));
    }

    #[test]
    fn a_value_of_objects_nested_to_the_format_s_depth_comes_back() {
        let mut value = Value::Bytes(vec![0, 255]);
        for _ in 0..24 {
            value = Value::Object([("k".to_owned(), value)].into());
        }
        let message = Message {
            thing: "t".into(),
            model: "m".into(),
            time_us: 1,
            received_us: 2,
            body: Body::Event { name: "e".into(), level: crate::Level::Warn, data: value, quality: Quality::Good },
        };
        assert_eq!(decode_message(&encode_message(&message)), Ok(message));
    }

    #[test]
    fn a_record_of_another_version_says_so() {
        assert_eq!(decode_message(&[9, 1, 2]), Err(WireError::Version(9)));
        assert_eq!(decode_message(&[]), Err(WireError::Empty));
    }
}
