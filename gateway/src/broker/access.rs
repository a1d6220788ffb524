//! Which topics a client may use: its devices' own topics always, others by its credential's lists.

use std::sync::Arc;

use protocols::Identity;
use protocols::mqtt::dialects::is_level;

use crate::credentials::Gatekeeper;

#[derive(Debug, Clone)]
pub(super) struct Access {
    gatekeeper: Arc<Gatekeeper>,
}

// === impl Access ===

impl Access {
    pub(super) fn new(gatekeeper: Arc<Gatekeeper>) -> Self {
        Self { gatekeeper }
    }

    pub(super) fn may_publish(&self, by: &Identity, client: &str, topic: &str) -> bool {
        !topic.starts_with("$SYS/")
            && (device_of(topic).is_some_and(|device| owns(by, client, device))
                || self.gatekeeper.may_publish(by, plain(client), topic))
    }

    pub(super) fn may_subscribe(&self, by: &Identity, client: &str, filter: &str) -> bool {
        let filter = match protocols::mqtt::topic::shared(filter) {
            protocols::mqtt::topic::Shared::Yes { filter, .. } => filter,
            _ => filter,
        };
        device_of(filter).is_some_and(|device| owns(by, client, device))
            || self.gatekeeper.may_subscribe(by, plain(client), filter)
    }
}

/// A device it speaks for, or the scope of its own name (a gateway need not be a device).
fn owns(by: &Identity, client: &str, device: &str) -> bool {
    is_level(device) && (by.reaches(device) || *device == *by.name || (device == "main" && by.reaches(client)))
}

/// A client id that holds wildcards or levels must not widen a pattern with `{client}`.
fn plain(client: &str) -> &str {
    if is_level(client) { client } else { "" }
}

/// The device whose own topic this is, by the dialects' shapes.
fn device_of(topic: &str) -> Option<&str> {
    let mut levels = topic.split('/');
    match (levels.next()?, levels.next()?, levels.next()?) {
        // JetLinks: `/{product}/{device}/…`.
        ("", product, device) if is_level(product) => levels.next().map(|_| device),
        ("te", "device", device) => Some(device),
        // ThingsBoard as the exchange knows it; a gateway's scope is its own name too.
        ("v1", "devices" | "gateways", own) => levels.next().map(|_| own),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use protocols::Reach;

    use super::*;
    use crate::credentials::{Credential, Secret};
    use crate::threads::Tasks;

    #[test]
    fn own_topics_and_listed_ones() {
        let credential = Credential {
            signing: None,
            name: "user".to_owned(),
            secret: Secret::of(b"x"),
            devices: vec!["m-1".to_owned()],
            publish: vec!["plant/{client}/#".to_owned()],
            subscribe: vec!["plant/#".to_owned()],
            push: Vec::new(),
            watch: Vec::new(),
        };
        let access = Access::new(Arc::new(Gatekeeper::new(vec![credential], Tasks::new())));
        let by = Identity { name: Arc::from("user"), reach: Reach::Only(Arc::from(["m-1".into()])) };
        for good in ["/meter/m-1/properties/report", "te/device/m-1///m/x", "v1/devices/m-1/telemetry", "plant/c-1/x"] {
            assert!(access.may_publish(&by, "c-1", good), "{good}");
        }
        for bad in ["/meter/m-2/properties/report", "te/device/m-2///m/x", "other", "plant/c-2/x", "$SYS/x"] {
            assert!(!access.may_publish(&by, "c-1", bad), "{bad}");
        }
        assert!(!access.may_publish(&by, "#", "plant/c-2/x"), "a client id is no wildcard");
        assert!(access.may_subscribe(&by, "c-1", "$share/g/plant/+"));
        assert!(access.may_subscribe(&by, "c-1", "/meter/m-1/#"));
        assert!(!access.may_subscribe(&by, "c-1", "#"));
        assert!(!access.may_subscribe(&by, "c-1", "/meter/+/properties/write"));
        assert!(access.may_publish(&Identity::anonymous(), "c-1", "设备/1"));
    }
}
