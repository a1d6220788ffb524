//! Who is who in Alink: product key, device name and secret of the gateway and of each thing, and what is signed with them.
//!
//! Source: Alibaba Cloud IoT Platform documentation, "Use MQTT-based ... signatures", "Manage topological relationships",
//! "Connect or disconnect sub-devices".

use std::collections::HashMap;
use std::sync::Arc;

use ring::hmac;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::super::dialect::SignIn;

/// Of a device, as the platform's console hands it out.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    pub product_key: String,
    pub device_name: String,
    device_secret: String,
}

/// Without the secret.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("device_name", &self.device_name).finish_non_exhaustive()
    }
}

/// The things' identities, by thing: an object of objects.
pub(super) fn identities(json: &str) -> Result<HashMap<Arc<str>, Identity>, String> {
    serde_json::from_str(json).map_err(|error| format!("the identities of the things: {error}"))
}

impl Identity {
    pub(super) fn new(product_key: &str, device_name: &str, secret: &str) -> Self {
        Self {
            product_key: product_key.to_owned(),
            device_name: device_name.to_owned(),
            device_secret: secret.to_owned(),
        }
    }

    /// `KIND/PRODUCT/DEVICE/WAY`, KIND being `sys` or `ext/session`.
    pub(super) fn topic(&self, kind: &str, way: &str) -> String {
        format!("/{kind}/{}/{}/{way}", self.product_key, self.device_name)
    }

    /// As history names a device.
    pub(super) fn named(&self) -> Json {
        json!({ "productKey": self.product_key, "deviceName": self.device_name })
    }

    /// The gateway's own way in: `securemode` 2 is TLS, 3 is none.
    pub(super) fn sign_in(&self, now_us: i64, tls: bool) -> SignIn {
        let client_id = format!("{}.{}", self.product_key, self.device_name);
        let (time, mode) = (now_us.div_euclid(1000), if tls { 2 } else { 3 });
        SignIn {
            password: self.sign(&client_id, time),
            username: format!("{}&{}", self.device_name, self.product_key),
            client_id: format!("{client_id}|securemode={mode},signmethod=hmacsha256,timestamp={time}|"),
        }
    }

    /// What a gateway shows to add a thing or to log it in; the two spell the method's key differently.
    pub(super) fn shown(&self, method_key: &str, now_us: i64) -> Map<String, Json> {
        let client_id = format!("{}&{}", self.product_key, self.device_name);
        let time = now_us.div_euclid(1000);
        let shown = [
            ("productKey", self.product_key.clone()),
            ("deviceName", self.device_name.clone()),
            ("sign", self.sign(&client_id, time)),
            ("clientId", client_id),
            ("timestamp", time.to_string()),
            (method_key, "hmacSha256".to_owned()),
        ];
        shown.into_iter().map(|(key, value)| (key.to_owned(), Json::from(value))).collect()
    }

    /// Names and values of what is signed, in the order of the alphabet.
    fn sign(&self, client_id: &str, time_ms: i64) -> String {
        let (product, device) = (&self.product_key, &self.device_name);
        let content = format!("clientId{client_id}deviceName{device}productKey{product}timestamp{time_ms}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.device_secret.as_bytes());
        let digits =
            |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default());
        hmac::sign(&key, content.as_bytes()).as_ref().iter().flat_map(digits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_as_openssl_makes_them() {
        // printf clientIdpk.gwdeviceNamegwproductKeypktimestamp1772352900250 | openssl dgst -sha256 -hmac secret
        let sign_in = Identity::new("pk", "gw", "secret").sign_in(1_772_352_900_250_000, true);
        assert_eq!(sign_in.client_id, "pk.gw|securemode=2,signmethod=hmacsha256,timestamp=1772352900250|");
        assert_eq!(sign_in.username, "gw&pk");
        assert_eq!(sign_in.password, "f9367001d5141f516c4a47e467a7212a2e4ab56e96bf9489b6a48320805db8a5");
        // printf 'clientIdpk&d1deviceNamed1productKeypktimestamp1772352900250' | openssl dgst -sha256 -hmac thing
        let shown = Identity::new("pk", "d1", "thing").shown("signMethod", 1_772_352_900_250_000);
        assert_eq!(shown["sign"], "7fb330653c742855e088e73b360f8346fbcb0b389105f2c9daf85d51fb438168");
        assert_eq!((&shown["clientId"], &shown["signMethod"]), (&json!("pk&d1"), &json!("hmacSha256")));
    }

    #[test]
    fn identities_are_read_and_secrets_are_not_shown() {
        let all = r#"{"meter-1": {"productKey": "pk", "deviceName": "d1", "deviceSecret": "deep"}}"#;
        let all = identities(all).unwrap();
        assert_eq!(all["meter-1"].topic("sys", "thing/x"), "/sys/pk/d1/thing/x");
        assert!(!format!("{all:?}").contains("deep"));
        for wrong in ["", "[]", r#"{"meter-1": {"productKey": "pk"}}"#] {
            assert!(identities(wrong).is_err(), "{wrong}");
        }
    }
}
