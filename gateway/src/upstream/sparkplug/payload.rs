//! The protobuf messages of Sparkplug B, as far as they are said and heard here (`sparkplug_b.proto` of Eclipse Tahu, proto2;
//! Sparkplug 3.0, clause 6.4). What is not named is skipped when it is heard: data sets, templates, metadata.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Payload {
    /// Milliseconds since 1970 UTC, here and below.
    #[prost(uint64, optional, tag = "1")]
    pub timestamp: Option<u64>,
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
    /// 0 to 255. Left out when a payload is made; see [`numbered`].
    #[prost(uint64, optional, tag = "3")]
    pub seq: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Metric {
    /// In births and commands; elsewhere the alias alone.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(uint64, optional, tag = "2")]
    pub alias: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    pub datatype: Option<u32>,
    #[prost(bool, optional, tag = "5")]
    pub is_historical: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub is_null: Option<bool>,
    #[prost(message, optional, tag = "9")]
    pub properties: Option<PropertySet>,
    #[prost(oneof = "Datum", tags = "10, 11, 12, 13, 14, 15, 16")]
    pub value: Option<Datum>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Datum {
    /// Up to 32 bits; a negative number in two's complement of its own width.
    #[prost(uint32, tag = "10")]
    Int(u32),
    #[prost(uint64, tag = "11")]
    Long(u64),
    #[prost(float, tag = "12")]
    Float(f32),
    #[prost(double, tag = "13")]
    Double(f64),
    #[prost(bool, tag = "14")]
    Boolean(bool),
    #[prost(string, tag = "15")]
    Text(String),
    #[prost(bytes, tag = "16")]
    Bytes(Vec<u8>),
}

/// Names and values beside each other, equally many.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PropertySet {
    #[prost(string, repeated, tag = "1")]
    pub keys: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub values: Vec<PropertyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PropertyValue {
    /// A data type.
    #[prost(uint32, optional, tag = "1")]
    pub r#type: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub int: Option<u32>,
    #[prost(string, optional, tag = "8")]
    pub text: Option<String>,
}

/// Adds `seq` to an encoded payload that has none: protobuf takes fields in any order.
pub(super) fn numbered(payload: &mut Vec<u8>, seq: u8) {
    const FIELD_3_VARINT: u8 = 3 << 3;
    payload.push(FIELD_3_VARINT);
    if seq >= 0x80 {
        payload.extend([seq, 1]);
    } else {
        payload.push(seq);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_number_added_last_is_read_as_any_other() {
        for seq in [0, 1, 127, 128, 255] {
            let mut bytes = Payload { timestamp: Some(7), ..Payload::default() }.encode_to_vec();
            numbered(&mut bytes, seq);
            let expected = Payload { timestamp: Some(7), seq: Some(seq.into()), ..Payload::default() };
            assert_eq!(Payload::decode(&*bytes).unwrap(), expected);
            assert_eq!(bytes, expected.encode_to_vec(), "and is what any other encoder makes");
        }
    }
}
