//! The lanes upstream: each class on each road. Live first means that what comes now has a lane of its own, and what waited
//! another, beside it.
//!
//! | lane | with `order = "live-first"` | with `order = "in-order"` |
//! |---|---|---|
//! | control | in order, before everything | the same |
//! | event, live, historical: newest | what came since the connection came up, or since this lane was last 10 s behind | not used |
//! | event, live, historical: main | what waited, at its own pace; every eighth batch at least | everything, in order |
//!
//! Where no more than one batch waits, a class stays on its main road alone, in order.

use device_models::Class;

use crate::bus::Road;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    pub class: Class,
    pub road: Road,
}

const fn main(class: Class) -> Lane {
    Lane { class, road: Road::Main }
}

const fn newest(class: Class) -> Lane {
    Lane { class, road: Road::Newest }
}

impl Lane {
    pub(super) const COUNT: usize = 8;

    /// In order: one lane a class, first come first served.
    pub(super) const IN_ORDER: &'static [Self] =
        &[main(Class::Control), main(Class::Event), main(Class::Live), main(Class::Historical)];

    /// Live first: in the order they are asked for a batch.
    pub(super) const LIVE_FIRST: &'static [Self] = &[
        main(Class::Control),
        newest(Class::Event),
        newest(Class::Live),
        newest(Class::Historical),
        main(Class::Event),
        main(Class::Live),
        main(Class::Historical),
    ];

    /// Classes whose newest records do not wait for older ones.
    pub(super) const SPLIT: [Class; 3] = [Class::Event, Class::Live, Class::Historical];

    pub(super) fn index(self) -> usize {
        usize::from(self.class.number()) + if self.road == Road::Newest { 4 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_a_place_of_its_own() {
        let mut places: Vec<_> = Lane::LIVE_FIRST.iter().map(|lane| lane.index()).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), Lane::LIVE_FIRST.len());
        assert!(places.iter().all(|place| *place < Lane::COUNT));
    }
}
