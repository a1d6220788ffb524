//! The native dialect: protobuf batches on `sg/v1/GATEWAY/up/{ctl,event,live,hist}`. `docs/native.md` explains it.

use device_models::wire::{Meta, WireError, encode_batch};

use super::dialect::{Dialect, Parcel, Publication};

#[derive(Debug)]
pub(super) struct Native;

impl Dialect for Native {
    fn aliases(&self) -> bool {
        true
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Vec<Publication>, WireError> {
        let meta = Meta {
            epoch: parcel.epoch,
            class: parcel.class,
            hist: parcel.hist,
            gw_time_us: parcel.now_us,
            clock: parcel.clock,
        };
        let payload = encode_batch(&meta, parcel.messages, parcel.holes, parcel.catalog)?;
        let way = if parcel.hist { "hist" } else { parcel.class.topic() };
        Ok(vec![Publication { topic: format!("sg/v1/{}/up/{way}", parcel.gateway), payload }])
    }
}
