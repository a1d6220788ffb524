//! The worked example in `docs/native.md` is what the code writes. Run with UPDATE_DOCS=1 to write it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects")]

use std::fmt::Write as _;
use std::path::Path;

use device_models::wire::{Batch, Catalog, Clock, Compression, Hole, Meta, PropertyName, encode_batch};
use device_models::{Body, Class, Message, Quality, Sample, Value};

/// A field: number, name, and what its bytes are.
type Field = (u64, &'static str, Shape);

#[derive(Clone, Copy)]
enum Shape {
    Plain,
    Zigzag,
    Text,
    Packed,
    PackedZigzag,
    Message(&'static [Field]),
}

use Shape::{Message as Inner, Packed, PackedZigzag, Plain, Text, Zigzag};

const PROPERTY: &[Field] = &[(1, "alias", Plain), (2, "name", Text), (3, "type", Text), (4, "unit", Text)];
const CATALOG: &[Field] = &[
    (1, "rev", Plain),
    (2, "thing", Inner(&[(1, "alias", Plain), (2, "id", Text), (3, "model", Text)])),
    (3, "model", Inner(&[(1, "name", Text), (2, "property", Inner(PROPERTY))])),
];
const ROWS: &[Field] = &[
    (1, "thing", Plain),
    (2, "id", Text),
    (3, "model", Text),
    (4, "skip", Packed),
    (5, "dt_us", PackedZigzag),
    (6, "late_us", PackedZigzag),
    (7, "prop", Packed),
    (8, "named", Packed),
    (9, "name", Text),
    (10, "kind", Packed),
    (11, "ints", PackedZigzag),
    (14, "text", Text),
    (16, "quality", Packed),
];
const BATCH: &[Field] = &[
    (1, "v", Plain),
    (2, "epoch", Plain),
    (3, "cls", Plain),
    (4, "first_seq", Plain),
    (5, "count", Plain),
    (6, "rev", Plain),
    (7, "hist", Plain),
    (9, "crc32c", Plain),
    (
        10,
        "body",
        Inner(&[
            (1, "rows", Inner(ROWS)),
            (3, "hole", Inner(&[(1, "at", Plain), (2, "count", Plain), (3, "reason", Text)])),
        ]),
    ),
    (11, "gw_time_us", Zigzag),
    (12, "clock", Plain),
    (13, "base_us", Zigzag),
];

fn catalog() -> Catalog {
    let mut catalog = Catalog::new(3);
    catalog.add_thing(1, "meter-1".into(), "energy-meter".into());
    let property =
        |name: &str, kind: &str, unit: &str| PropertyName { name: name.into(), kind: kind.into(), unit: unit.into() };
    catalog.add_property(&"energy-meter".into(), 1, property("power", "number", "W"));
    catalog.add_property(&"energy-meter".into(), 2, property("on", "boolean", ""));
    catalog
}

fn batch() -> Vec<u8> {
    let sample = |alias, name: &str, value, quality| Sample { alias, name: name.into(), value, quality };
    let message = |thing: &str, model: &str, time_us, samples| Message {
        thing: thing.into(),
        model: model.into(),
        time_us,
        received_us: time_us,
        body: Body::Properties(samples),
    };
    let meter = |time_us, power| {
        let on = sample(2, "on", Value::Bool(true), Quality::Good);
        message("meter-1", "energy-meter", time_us, vec![sample(1, "power", Value::Float(power), Quality::Good), on])
    };
    let start = 1_772_352_900_250_000;
    let colour = sample(0, "colour", Value::Text("red".to_owned()), Quality::UnknownProperty);
    let messages = [
        (41, meter(start, 230.1)),
        (42, meter(start + 1_000_000, 230.4)),
        (44, message("lamp", "switch", start + 1_500_000, vec![colour])),
    ];
    let meta = Meta {
        epoch: 0x1234_5678_90ab_cdef,
        class: Class::Live,
        hist: false,
        gw_time_us: start + 1_600_000,
        clock: Clock::Synchronized,
        compression: Compression::None,
    };
    let holes = [Hole { first: 43, count: 1, reason: "cap".to_owned() }];
    let bytes = encode_batch(&meta, &messages, &holes, &catalog()).unwrap();
    let back = Batch::parse(&bytes).unwrap().decode(&catalog()).unwrap();
    assert_eq!((back.messages.as_slice(), back.holes.as_slice()), (messages.as_slice(), holes.as_slice()));
    bytes
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

const fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

/// One line a field: the bytes, then what they say.
fn explain(bytes: &[u8], fields: &[Field], depth: usize, out: &mut String) {
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let key = varint(bytes, &mut at);
        let (_, name, shape) = *fields.iter().find(|field| field.0 == key >> 3).expect("a field of the example");
        let (content, said) = match (key & 7, shape) {
            (0, Zigzag) => (0..0, unzigzag(varint(bytes, &mut at)).to_string()),
            (0, _) => (0..0, varint(bytes, &mut at).to_string()),
            (1, _) => {
                at += 8;
                (0..0, format!("0x{:016x}", u64::from_le_bytes(bytes[at - 8..at].try_into().unwrap())))
            }
            (5, _) => {
                at += 4;
                (0..0, format!("0x{:08x}", u32::from_le_bytes(bytes[at - 4..at].try_into().unwrap())))
            }
            (2, _) => {
                let len = varint(bytes, &mut at) as usize;
                at += len;
                (at - len..at, String::new())
            }
            (wire, _) => panic!("wire type {wire}"),
        };
        let inside = &bytes[content.clone()];
        let numbers = |zigzag: bool| {
            let mut at = 0;
            let mut numbers = Vec::new();
            while at < inside.len() {
                let v = varint(inside, &mut at);
                numbers.push(if zigzag { unzigzag(v).to_string() } else { v.to_string() });
            }
            numbers.join(", ")
        };
        let (shown, said) = match shape {
            Inner(_) => (&bytes[start..content.start], format!("{} bytes", inside.len())),
            Text => (&bytes[start..at], format!("\"{}\"", String::from_utf8_lossy(inside))),
            Packed => (&bytes[start..at], numbers(false)),
            PackedZigzag => (&bytes[start..at], numbers(true)),
            Plain | Zigzag => (&bytes[start..at], said),
        };
        let mut left =
            shown.chunks(12).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "));
        let first = left.next().unwrap_or_default();
        let line = format!("{first:<38}{:indent$}{name} = {said}", "", indent = depth * 2);
        writeln!(out, "    {}", line.trim_end()).unwrap();
        for more in left {
            writeln!(out, "    {}", more.trim_end()).unwrap();
        }
        if let Inner(fields) = shape {
            explain(inside, fields, depth + 1, out);
        }
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "reads and, on demand, writes the documentation")]
fn the_worked_example_is_what_the_code_writes() {
    const BEGIN: &str = "<!-- example -->\n";
    const END: &str = "<!-- end of example -->";
    let (catalog, batch) = (catalog().encode(), batch());
    let mut example = format!("\n`sg/v1/box-1/model/3`, {} bytes:\n\n", catalog.len());
    explain(&catalog, CATALOG, 0, &mut example);
    write!(example, "\n`sg/v1/box-1/up/live`, {} bytes:\n\n", batch.len()).unwrap();
    explain(&batch, BATCH, 0, &mut example);
    example.push('\n');

    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/native.md");
    let text = std::fs::read_to_string(&place).unwrap();
    let begin = text.find(BEGIN).expect("the example's beginning") + BEGIN.len();
    let end = text.find(END).expect("the example's end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&place, format!("{}{example}{}", &text[..begin], &text[end..])).unwrap();
        return;
    }
    assert!(
        text[begin..end] == example,
        "docs/native.md's example is not what the code writes: run UPDATE_DOCS=1 cargo test -p device-models --test native_doc"
    );
}
