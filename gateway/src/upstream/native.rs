//! The native dialect: protobuf batches on `sg/v1/GATEWAY/up/{ctl,event,live,hist}`. `docs/native.md` explains it.

use device_models::wire::{Meta, WireError, encode_batch};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station};
use super::own;
use super::receipt::Receipt;

#[derive(Debug)]
pub(super) struct Native;

impl Dialect for Native {
    fn word(&self) -> &'static str {
        "native"
    }

    fn aliases(&self) -> bool {
        true
    }

    fn accounts(&self) -> bool {
        true
    }

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn station(&self, scope: Scope<'_>, run: Run) -> Option<Station> {
        Some(own::station(scope, run))
    }

    fn filters(&self, scope: Scope<'_>) -> Vec<String> {
        own::filters(scope)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], _stamp: i64) -> Heard {
        if topic != Receipt::topic(scope.gateway) {
            return own::hear(scope, topic, payload);
        }
        Receipt::parse(payload).map_or_else(Heard::Unreadable, Heard::Received)
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let meta = Meta {
            epoch: parcel.epoch,
            class: parcel.class,
            hist: parcel.hist,
            gw_time_us: parcel.now_us,
            clock: parcel.clock,
            compression: parcel.compression,
        };
        let payload = encode_batch(&meta, parcel.messages, parcel.holes, parcel.catalog)?;
        let way = if parcel.hist { "hist" } else { parcel.class.topic() };
        let topic = format!("sg/v1/{}/up/{way}", parcel.scope.gateway);
        let (first, last) = parcel.span();
        let origin = Some(parcel.origin(first, last, None));
        Ok(vec![Publication { origin, ..Publication::new(topic, payload) }].into())
    }
}
