//! What a device can find out by asking: `/.well-known/core` (RFC 6690) and the short manual at `/things`.

use std::fmt::Write;

/// The manual: text, for whoever stands before the box with a command line.
pub(super) const MANUAL: &str = "\
POST /things/DEVICE/properties          {\"temperature\":21.5} or {\"time\":MS,\"properties\":{...}} or an array of them
PUT  /things/DEVICE/properties/NAME     21.5
POST /things/DEVICE/events/NAME         {\"data\":...}
GET  /things/DEVICE/commands            observe it: each notification is an order
POST /things/DEVICE/replies/ID          {\"ok\":true,\"data\":...}
POST /api/v1/TOKEN/telemetry            {\"temperature\":21.5}
JSON (50) or CBOR (60); credentials as ?token=SECRET, source time as ?t=MS
";

/// The links: the resources that are always there, and those of the devices this peer speaks for.
pub(super) fn core<'a>(devices: impl Iterator<Item = &'a str>) -> String {
    let mut links = "</.well-known/core>;ct=40,</things>;rt=\"sg.things\";ct=0;title=\"how to report\"".to_owned();
    for device in devices {
        let device = percent_encoded(device);
        let resources =
            [("properties", "rt=\"sg.properties\";ct=\"50 60\""), ("commands", "rt=\"sg.commands\";ct=\"50 60\";obs")];
        for (resource, attributes) in resources {
            // Writing into a String does not fail.
            if write!(links, ",</things/{device}/{resource}>;{attributes}").is_err() {
                break;
            }
        }
    }
    links
}

/// A path segment (RFC 3986 section 3.3): everything but unreserved characters in hexadecimal.
fn percent_encoded(segment: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_link_format() {
        let links = core(["boiler", "设 1"].into_iter());
        assert!(links.contains("</things/boiler/properties>;rt=\"sg.properties\";ct=\"50 60\""), "{links}");
        assert!(links.contains("</things/%E8%AE%BE%201/commands>"), "{links}");
        assert_eq!(links.split(",<").count(), 6);
    }
}
