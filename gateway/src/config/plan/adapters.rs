//! Adapters and the devices that are declared: names, addresses, languages with their options, products.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use device_models::model::Models;
use protocols::Wire;

use super::Check;
use crate::config::Adapter;
use crate::devices::Declared;
use crate::intake::AdapterInfo;
use crate::transport::{self, Language, Listen};

impl Check<'_> {
    pub(super) fn adapters(&mut self) -> Vec<transport::Adapter> {
        let mut names = HashSet::new();
        let mut listens: HashMap<String, usize> = HashMap::new();
        let mut ready = Vec::new();
        for (at, adapter) in self.config.adapters.iter().enumerate() {
            let key = format!("adapter[{at}]");
            if adapter.name.is_empty() || !names.insert(adapter.name.as_str()) {
                self.problem(
                    format!("{key}.name"),
                    format!("`{}`: each adapter needs a name of its own", adapter.name),
                );
            }
            if let Some(other) = listens.insert(adapter.listen.clone(), at)
                && !adapter.listen.ends_with(":0")
            {
                let what = format!("{} is taken by adapter[{other}] already", adapter.listen);
                self.problem(format!("{key}.listen"), what);
            }
            if let Some(adapter) = self.adapter(&key, adapter) {
                ready.push(adapter);
            }
        }
        ready
    }

    fn adapter(&mut self, key: &str, adapter: &Adapter) -> Option<transport::Adapter> {
        let listen: Listen = match adapter.listen.parse() {
            Ok(listen) => listen,
            Err(error) => {
                self.problem(format!("{key}.listen"), format!("{error}"));
                return None;
            }
        };
        let nobody =
            !adapter.allow_anonymous && adapter.push_without_key.is_empty() && self.config.credentials.is_empty();
        if !listen.is_on_the_box() && nobody {
            let what = format!(
                "{listen} can be reached from off the box, and there is no [[credential]]; add one, or write \
                 allow_anonymous = true"
            );
            self.problem(format!("{key}.listen"), what);
        }
        if adapter.connections_max == 0 || adapter.connections_max > 100_000 {
            self.problem(format!("{key}.connections_max"), "out of range: 1 to 100000");
        }
        if adapter.commit_ms.is_some_and(|ms| ms > 1_000) {
            self.problem(format!("{key}.commit_ms"), "out of range: 0 to 1000 ms");
        }
        if adapter.auto_register && adapter.product.is_none() {
            self.problem(format!("{key}.product"), "auto_register needs to know the product of new devices");
        }
        let languages = self.languages(key, adapter, &listen);
        let tls = self.tls(key, adapter, &listen);
        let info = AdapterInfo {
            name: Arc::from(adapter.name.as_str()),
            product: adapter.product.clone(),
            auto_register: adapter.auto_register,
            allow_anonymous: adapter.allow_anonymous,
            push_without_key: adapter.push_without_key.clone(),
            commit: adapter.commit_ms.map(Duration::from_millis),
        };
        Some(transport::Adapter {
            info: Arc::new(info),
            listen,
            languages,
            connections_max: adapter.connections_max,
            tls,
        })
    }

    fn languages(&mut self, key: &str, adapter: &Adapter, listen: &Listen) -> Vec<Arc<Language>> {
        let names = adapter.protocol.names();
        let wire = if matches!(listen, Listen::Udp(_)) { Wire::Datagram } else { Wire::Stream };
        let mut languages = Vec::new();
        if names.is_empty() || (names.len() > 1 && wire == Wire::Datagram) {
            self.problem(format!("{key}.protocol"), "name one protocol (several share a port only on TCP)");
        }
        for name in &names {
            let Some(row) = protocols::protocol(name) else {
                let known = protocols::PROTOCOLS.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
                self.problem(format!("{key}.protocol"), format!("there is no protocol `{name}`; there are {known}"));
                continue;
            };
            if !row.wires().contains(&wire) {
                self.problem(format!("{key}.listen"), format!("`{name}` does not run on {listen}"));
            }
            let options = if names.len() == 1 {
                adapter.options.clone()
            } else {
                match adapter.options.get(*name) {
                    None => toml::Table::new(),
                    Some(toml::Value::Table(own)) => own.clone(),
                    Some(_) => {
                        self.problem(format!("{key}.options"), format!("write options.{name} = {{ … }}"));
                        continue;
                    }
                }
            };
            match row.configure(&options) {
                Ok(endpoint) => languages.push(Arc::new(Language::new(row, endpoint))),
                Err(error) => self.problem(format!("{key}.options"), format!("{name}: {error}")),
            }
        }
        if names.len() > 1 {
            for unknown in adapter.options.keys().filter(|k| !names.contains(&k.as_str())) {
                let what = format!("several protocols: one table each, {}; not `{unknown}`", names.join(", "));
                self.problem(format!("{key}.options"), what);
            }
        }
        // Sniffing asks in the order of the table.
        let place =
            |language: &Arc<Language>| protocols::PROTOCOLS.iter().position(|row| row.name() == language.row.name());
        languages.sort_by_key(place);
        languages
    }

    pub(super) fn devices(&mut self, models: &Models) -> Vec<Declared> {
        let mut ids = HashSet::new();
        let adapters: HashSet<_> = self.config.adapters.iter().map(|a| a.name.as_str()).collect();
        let mut declared = Vec::new();
        for (at, device) in self.config.devices.iter().enumerate() {
            let key = format!("device[{at}]");
            if device.id.is_empty() || device.id.len() > 128 || device.id.contains(['+', '#']) {
                self.problem(format!("{key}.id"), "an id has 1 to 128 bytes and no `+` or `#`");
            }
            if !ids.insert(device.id.as_str()) {
                self.problem(format!("{key}.id"), format!("`{}` is declared twice", device.id));
            }
            if models.get(&device.product).is_none() {
                let known = models.names().join(", ");
                let what = format!("there is no model `{}`; there are {known}", device.product);
                self.problem(format!("{key}.product"), what);
            }
            if let Some(adapter) = device.adapter.as_deref().filter(|a| !adapters.contains(a)) {
                self.problem(format!("{key}.adapter"), format!("there is no adapter `{adapter}`"));
            }
            declared.push(Declared {
                id: device.id.clone(),
                product: device.product.clone(),
                name: device.name.clone().unwrap_or_else(|| device.id.clone()),
                adapter: device.adapter.clone(),
            });
        }
        for (at, adapter) in self.config.adapters.iter().enumerate() {
            if let Some(product) = adapter.product.as_deref().filter(|p| models.get(p).is_none()) {
                let known = models.names().join(", ");
                let what = format!("there is no model `{product}`; there are {known}");
                self.problem(format!("adapter[{at}].product"), what);
            }
        }
        declared
    }
}
