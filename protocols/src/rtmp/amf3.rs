//! AMF3 (Adobe, "AMF 3", 2013), as far as commands of object encoding 3 need it: read only, into AMF0's values.
//!
//! References to objects come out as `Undefined` and text is counted, so a small message cannot become a large tree.

use crate::media::MediaError;
use crate::media::amf0::{self, DEPTH_MAX, MARKER_AMF3, VALUES_MAX, Value};

/// Bytes of text one command may unfold to, repeated references counted.
pub(super) const TEXT_MAX: usize = 256 * 1024;

/// Values one command may have; real ones have five.
pub(super) const ARGUMENTS_MAX: usize = 32;

const PART: &str = "AMF3";

/// All values of a command: AMF0, each of which may hand over to AMF3 by its marker.
pub(super) fn arguments(payload: &[u8]) -> Result<Vec<Value>, MediaError> {
    let mut values = Vec::new();
    let mut rest = payload;
    while let Some(&marker) = rest.first() {
        if values.len() == ARGUMENTS_MAX {
            return Err(MediaError::Limit { part: "command", what: "values", max: ARGUMENTS_MAX });
        }
        if marker == MARKER_AMF3 {
            let mut reader = Reader { data: rest, at: 1, ..Reader::default() };
            values.push(reader.value(0)?);
            rest = rest.get(reader.at..).unwrap_or_default();
        } else {
            let mut reader = amf0::Reader::new(rest);
            values.push(reader.value()?);
            rest = reader.rest();
        }
    }
    Ok(values)
}

#[derive(Debug, Default)]
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    values: usize,
    text: usize,
    strings: Vec<String>,
    traits: Vec<Traits>,
}

#[derive(Debug, Clone)]
struct Traits {
    dynamic: bool,
    names: Vec<String>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MediaError> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.data.get(self.at..end));
        let taken = taken.ok_or(MediaError::Truncated { part: PART, at: self.data.len() })?;
        self.at += len;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, MediaError> {
        self.take(1).map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    fn f64(&mut self) -> Result<f64, MediaError> {
        let bytes = self.take(8)?;
        Ok(bytes.first_chunk().map_or(0.0, |bytes| f64::from_be_bytes(*bytes)))
    }

    /// 1.3.1: up to four bytes, 29 bits.
    fn u29(&mut self) -> Result<u32, MediaError> {
        let mut number = 0;
        for _ in 0..3 {
            let byte = u32::from(self.u8()?);
            number = number << 7 | byte & 0x7f;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Ok(number << 8 | u32::from(self.u8()?))
    }

    fn value(&mut self, depth: usize) -> Result<Value, MediaError> {
        if depth > DEPTH_MAX {
            return Err(MediaError::Limit { part: PART, what: "levels", max: DEPTH_MAX });
        }
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(MediaError::Limit { part: PART, what: "values", max: VALUES_MAX });
        }
        let marker = self.u8()?;
        Ok(match marker {
            0x00 => Value::Undefined,
            0x01 => Value::Null,
            0x02 => Value::Boolean(false),
            0x03 => Value::Boolean(true),
            // 29 bits with a sign.
            0x04 => Value::Number(f64::from((self.u29()? << 3) as i32 >> 3)),
            0x05 => Value::Number(self.f64()?),
            0x06 => Value::String(self.string()?),
            0x07 | 0x0b | 0x0c => match self.u29()? {
                head if head & 1 == 0 => Value::Undefined,
                head => {
                    let bytes = self.take((head >> 1) as usize)?;
                    if marker == 0x0c { Value::Undefined } else { Value::Xml(self.text(bytes)?) }
                }
            },
            0x08 => match self.u29()? {
                head if head & 1 == 0 => Value::Undefined,
                _ => Value::Date(self.f64()?),
            },
            0x09 => self.array(depth)?,
            0x0a => self.object(depth)?,
            _ => return Err(MediaError::Malformed { part: PART, what: "unknown marker", at: self.at }),
        })
    }

    /// Text of any origin is counted.
    fn text(&mut self, bytes: &[u8]) -> Result<String, MediaError> {
        self.count_text(bytes.len())?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn count_text(&mut self, len: usize) -> Result<(), MediaError> {
        self.text += len;
        if self.text > TEXT_MAX {
            return Err(MediaError::Limit { part: PART, what: "bytes of text", max: TEXT_MAX });
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, MediaError> {
        let head = self.u29()?;
        if head & 1 == 0 {
            let string = self.strings.get((head >> 1) as usize).cloned();
            let string = string.ok_or(MediaError::Malformed { part: PART, what: "unknown reference", at: self.at })?;
            self.count_text(string.len())?;
            return Ok(string);
        }
        let bytes = self.take((head >> 1) as usize)?;
        let string = self.text(bytes)?;
        if !string.is_empty() {
            self.strings.push(string.clone());
        }
        Ok(string)
    }

    fn array(&mut self, depth: usize) -> Result<Value, MediaError> {
        let head = self.u29()?;
        if head & 1 == 0 {
            return Ok(Value::Undefined);
        }
        let named = self.named(depth)?;
        let dense = (0..head >> 1).map(|_| self.value(depth + 1)).collect::<Result<Vec<_>, _>>()?;
        Ok(if named.is_empty() { Value::StrictArray(dense) } else { Value::EcmaArray(named) })
    }

    /// Names and values up to the empty name.
    fn named(&mut self, depth: usize) -> Result<Vec<(String, Value)>, MediaError> {
        let mut named = Vec::new();
        loop {
            let name = self.string()?;
            if name.is_empty() {
                return Ok(named);
            }
            named.push((name, self.value(depth + 1)?));
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, MediaError> {
        let head = self.u29()?;
        if head & 1 == 0 {
            return Ok(Value::Undefined);
        }
        let traits = self.traits(head)?;
        let mut fields = Vec::new();
        for name in traits.names {
            self.count_text(name.len())?;
            fields.push((name, self.value(depth + 1)?));
        }
        if traits.dynamic {
            fields.extend(self.named(depth)?);
        }
        Ok(Value::Object(fields))
    }

    fn traits(&mut self, head: u32) -> Result<Traits, MediaError> {
        if head & 2 == 0 {
            let known = self.traits.get((head >> 2) as usize).cloned();
            return known.ok_or(MediaError::Malformed { part: PART, what: "unknown traits", at: self.at });
        }
        if head & 4 != 0 {
            return Err(MediaError::Malformed { part: PART, what: "externalizable object", at: self.at });
        }
        self.string()?;
        let count = (head >> 4) as usize;
        if count > VALUES_MAX {
            return Err(MediaError::Limit { part: PART, what: "fields", max: VALUES_MAX });
        }
        let names = (0..count).map(|_| self.string()).collect::<Result<Vec<_>, _>>()?;
        let traits = Traits { dynamic: head & 8 != 0, names };
        self.traits.push(traits.clone());
        Ok(traits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(data: &[u8]) -> Result<Value, MediaError> {
        let mut command = vec![MARKER_AMF3];
        command.extend(data);
        arguments(&command).map(|mut values| values.remove(0))
    }

    #[test]
    fn the_values_of_commands() {
        let table: &[(&[u8], Value)] = &[
            (&[0], Value::Undefined),
            (&[1], Value::Null),
            (&[2], Value::Boolean(false)),
            (&[3], Value::Boolean(true)),
            (&[4, 0x05], Value::Number(5.0)),
            (&[4, 0x81, 0x00], Value::Number(128.0)),
            (&[4, 0xff, 0xff, 0xff, 0xff], Value::Number(-1.0)),
            (&[5, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0], Value::Number(1.0)),
            (&[6, 5, b'h', b'i'], "hi".into()),
            (&[9, 5, 1, 1, 3], Value::StrictArray(vec![Value::Null, Value::Boolean(true)])),
            (&[0x0a, 0x0b, 1, 3, b'a', 4, 1, 1], Value::object([("a", Value::Number(1.0))])),
            (&[0x0a, 0x13, 1, 3, b'a', 6, 0], Value::object([("a", "a".into())])),
        ];
        for (data, value) in table {
            assert_eq!(read(data).as_ref(), Ok(value), "{data:02x?}");
            for len in 0..data.len() {
                assert!(read(&data[..len]).is_err(), "{data:02x?} cut at {len}");
            }
        }
    }

    #[test]
    fn a_command_may_change_its_encoding_midway() {
        let values = arguments(&[2, 0, 1, b'c', 0x11, 4, 1, 5]).unwrap();
        assert_eq!(values, ["c".into(), Value::Number(1.0), Value::Null]);
    }

    #[test]
    fn bombs_are_refused() {
        assert!(matches!(read(&[9, 3, 1].repeat(1_000)), Err(MediaError::Limit { what: "levels", .. })));
        // A long string, then references to it.
        let mut references = vec![9, 0xbe, 0x43, 1, 6, 0x87, 0xff, 0x7f];
        references.extend(vec![b'x'; 0xffff]);
        references.extend([6, 0].repeat(4_000));
        assert!(
            matches!(read(&references), Err(MediaError::Limit { what: "bytes of text", .. })),
            "{:?}",
            read(&references)
        );
        assert!(arguments(&[5; 100]).is_err());
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _value = read(&noise);
            let _values = arguments(&noise);
        }
    }
}
