//! AMF0 (Adobe, "Action Message Format - AMF 0", 2007): the values of script data and RTMP commands.

use bytes::{BufMut, BytesMut};

use super::read::{ByteReader, MediaError};

/// Objects and arrays inside each other; real ones go three deep.
pub const DEPTH_MAX: usize = 16;

/// Values in one message, so that a small message cannot become a large tree.
pub const VALUES_MAX: usize = 4_096;

/// The marker after which an AMF3 value follows (2.16).
pub const MARKER_AMF3: u8 = 0x11;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Boolean(bool),
    /// Short and long strings; bytes that are no UTF-8 are replaced.
    String(String),
    Object(Vec<(String, Value)>),
    EcmaArray(Vec<(String, Value)>),
    StrictArray(Vec<Value>),
    Null,
    Undefined,
    /// Milliseconds since 1970 UTC.
    Date(f64),
    /// A typed object's class is dropped, its fields are an [`Object`](Self::Object); references, unsupported and
    /// record-set markers come out as [`Undefined`](Self::Undefined).
    Xml(String),
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Xml(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Boolean(flag) => Some(f64::from(u8::from(*flag))),
            _ => None,
        }
    }

    /// The field of an object or associative array.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Object(fields) | Self::EcmaArray(fields) => fields.iter().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// An object of these fields.
    pub fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        Self::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Appends the value's encoding. Strings above 65,535 bytes become long strings; names above it are cut.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Number(number) => {
                out.put_u8(0);
                out.put_f64(*number);
            }
            Self::Boolean(flag) => out.put_slice(&[1, u8::from(*flag)]),
            Self::String(text) => match u16::try_from(text.len()) {
                Ok(len) => {
                    out.put_u8(2);
                    out.put_u16(len);
                    out.put_slice(text.as_bytes());
                }
                Err(_) => write_long(0x0c, text, out),
            },
            Self::Object(fields) => {
                out.put_u8(3);
                write_fields(fields, out);
            }
            Self::Null => out.put_u8(5),
            Self::Undefined => out.put_u8(6),
            Self::EcmaArray(fields) => {
                out.put_u8(8);
                out.put_u32(fields.len() as u32);
                write_fields(fields, out);
            }
            Self::StrictArray(values) => {
                out.put_u8(0x0a);
                out.put_u32(values.len() as u32);
                for value in values {
                    value.write(out);
                }
            }
            Self::Date(milliseconds) => {
                out.put_u8(0x0b);
                out.put_f64(*milliseconds);
                out.put_u16(0);
            }
            Self::Xml(text) => write_long(0x0f, text, out),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

fn write_long(marker: u8, text: &str, out: &mut BytesMut) {
    out.put_u8(marker);
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn write_fields(fields: &[(String, Value)], out: &mut BytesMut) {
    for (name, value) in fields {
        let name = name.as_bytes().get(..usize::from(u16::MAX)).unwrap_or(name.as_bytes());
        out.put_u16(name.len() as u16);
        out.put_slice(name);
        value.write(out);
    }
    out.put_slice(&[0, 0, 9]);
}

/// Reads values one after another.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: ByteReader<'a>,
    values: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { bytes: ByteReader::new("AMF0", data), values: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.rest()
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.bytes.position()
    }

    pub fn value(&mut self) -> Result<Value, MediaError> {
        self.nested(0)
    }

    fn nested(&mut self, depth: usize) -> Result<Value, MediaError> {
        if depth > DEPTH_MAX {
            return Err(self.bytes.limit("levels", DEPTH_MAX));
        }
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(self.bytes.limit("values", VALUES_MAX));
        }
        let marker = self.bytes.u8()?;
        Ok(match marker {
            0x00 => Value::Number(self.bytes.f64()?),
            0x01 => Value::Boolean(self.bytes.u8()? != 0),
            0x02 => Value::String(self.short()?),
            0x03 => Value::Object(self.fields(depth)?),
            0x05 => Value::Null,
            0x06 | 0x0d | 0x0e => Value::Undefined,
            0x07 => {
                self.bytes.u16()?;
                Value::Undefined
            }
            0x08 => {
                // The count is only a hint (2.10); the end marker decides.
                self.bytes.u32()?;
                Value::EcmaArray(self.fields(depth)?)
            }
            0x0a => {
                let count = self.bytes.u32()? as usize;
                if count > VALUES_MAX {
                    return Err(self.bytes.limit("values", VALUES_MAX));
                }
                Value::StrictArray((0..count).map(|_| self.nested(depth + 1)).collect::<Result<_, _>>()?)
            }
            0x0b => {
                let milliseconds = self.bytes.f64()?;
                self.bytes.u16()?;
                Value::Date(milliseconds)
            }
            0x0c => Value::String(self.long()?),
            0x0f => Value::Xml(self.long()?),
            0x10 => {
                self.short()?;
                Value::Object(self.fields(depth)?)
            }
            MARKER_AMF3 => return Err(self.bytes.malformed("AMF3 value inside AMF0")),
            _ => return Err(self.bytes.malformed("unknown marker")),
        })
    }

    /// Fields up to the end marker; some encoders leave the marker out where the message ends.
    fn fields(&mut self, depth: usize) -> Result<Vec<(String, Value)>, MediaError> {
        let mut fields = Vec::new();
        while !self.bytes.is_empty() {
            let name = self.short()?;
            if name.is_empty() && self.bytes.rest().first() == Some(&9) {
                self.bytes.u8()?;
                break;
            }
            fields.push((name, self.nested(depth + 1)?));
        }
        Ok(fields)
    }

    fn short(&mut self) -> Result<String, MediaError> {
        let len = self.bytes.u16()?;
        self.bytes.take(usize::from(len)).map(text)
    }

    fn long(&mut self) -> Result<String, MediaError> {
        let len = self.bytes.u32()?;
        self.bytes.take(len as usize).map(text)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(data: &[u8]) -> Result<Value, MediaError> {
        Reader::new(data).value()
    }

    #[test]
    fn every_marker() {
        let table: &[(&[u8], Value)] = &[
            (&[0, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0], Value::Number(1.0)),
            (&[1, 1], Value::Boolean(true)),
            (&[2, 0, 2, b'h', b'i'], "hi".into()),
            (&[3, 0, 1, b'a', 5, 0, 0, 9], Value::object([("a", Value::Null)])),
            (&[5], Value::Null),
            (&[6], Value::Undefined),
            (&[7, 0, 1], Value::Undefined),
            (&[8, 0, 0, 0, 9, 0, 1, b'a', 1, 0, 0, 0, 9], Value::EcmaArray(vec![("a".into(), Value::Boolean(false))])),
            (&[0x0a, 0, 0, 0, 2, 5, 6], Value::StrictArray(vec![Value::Null, Value::Undefined])),
            (&[0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Value::Date(0.0)),
            (&[0x0c, 0, 0, 0, 1, b'x'], "x".into()),
            (&[0x0d], Value::Undefined),
            (&[0x0f, 0, 0, 0, 1, b'x'], Value::Xml("x".into())),
            (&[0x10, 0, 1, b'C', 0, 1, b'a', 5, 0, 0, 9], Value::object([("a", Value::Null)])),
        ];
        for (data, value) in table {
            assert_eq!(read(data).as_ref(), Ok(value), "{data:02x?}");
            for len in 0..data.len() {
                // An object without its end marker is whole where the message ends.
                if !matches!(data[0], 3 | 8 | 0x10) {
                    assert!(read(&data[..len]).is_err(), "{data:02x?} cut at {len}");
                }
            }
        }
        assert!(read(&[0x04]).is_err());
        assert!(read(&[MARKER_AMF3, 1]).is_err());
    }

    #[test]
    fn a_depth_bomb_and_a_wide_bomb_are_refused() {
        let deep: Vec<u8> = [3, 0, 1, b'a'].repeat(100_000);
        assert_eq!(read(&deep), Err(MediaError::Limit { part: "AMF0", what: "levels", max: DEPTH_MAX }));
        let arrays: Vec<u8> = [0x0a, 0, 0, 0, 1].repeat(100_000);
        assert!(matches!(read(&arrays), Err(MediaError::Limit { .. })));
        assert!(matches!(read(&[0x0a, 0xff, 0xff, 0xff, 0xff]), Err(MediaError::Limit { .. })));
        let mut wide = vec![0x0a, 0, 0, 0x10, 0];
        wide.extend([5; 5_000]);
        assert!(matches!(read(&wide), Err(MediaError::Limit { .. })));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            (-1e9..1e9).prop_map(Value::Number),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,20}".prop_map(Value::String),
            Just(Value::Null),
            Just(Value::Undefined),
            (0.0..1e13).prop_map(Value::Date),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let fields = prop::collection::vec(("[a-z]{1,8}", inner.clone()), 0..5);
            prop_oneof![
                fields.clone().prop_map(Value::Object),
                fields.prop_map(Value::EcmaArray),
                prop::collection::vec(inner, 0..5).prop_map(Value::StrictArray),
            ]
        })
    }

    proptest! {
        #[test]
        fn written_values_read_back(values in prop::collection::vec(any_value(), 1..4)) {
            let mut out = BytesMut::new();
            for value in &values {
                value.write(&mut out);
            }
            let mut reader = Reader::new(&out);
            for value in &values {
                prop_assert_eq!(&reader.value().unwrap(), value);
            }
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _value = read(&noise);
        }
    }
}
