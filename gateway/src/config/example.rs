//! The complete commented example: `sluicegate check --example`.

/// The sections that belong to no protocol.
const HEAD: &str = include_str!("example.toml");

/// Head plus the example adapter of every protocol, straight from the table.
pub fn example() -> String {
    let mut text = HEAD.to_owned();
    for row in protocols::PROTOCOLS {
        text.push_str("\n# ");
        text.push_str(row.name());
        text.push_str(": ");
        text.push_str(row.summary());
        text.push('\n');
        text.push_str(row.example().trim());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load, plan};

    #[test]
    fn the_example_passes_its_own_check() {
        let loaded = load::load_text("example", &example()).unwrap();
        assert!(!loaded.config.adapters.is_empty());
        let plan = plan::Plan::make(loaded).map_err(|p| p.to_string()).unwrap();
        assert_eq!(plan.adapters.len(), protocols::PROTOCOLS.len());
    }

    #[test]
    fn shares_and_ages_out_of_range_are_refused_by_name() {
        let text = "[store]\nshare_percent = { live = 90, event = 30 }\nttl_hours = { live = 90000 }\n";
        let problems = plan::Plan::make(load::load_text("box.toml", text).unwrap()).map(drop).unwrap_err().to_string();
        assert!(problems.contains("box.toml:2: store.share_percent: the shares make 140 percent"), "{problems}");
        assert!(problems.contains("box.toml:3: store.ttl_hours: 90000 is out of range"), "{problems}");
    }

    /// Every key of every section stands in the example: it is the reference.
    #[test]
    fn the_example_names_every_key() {
        let source = [
            include_str!("mod.rs"),
            include_str!("media.rs"),
            include_str!("outlet.rs"),
            include_str!("rules.rs"),
            include_str!("shadow.rs"),
            include_str!("store.rs"),
            include_str!("upstream.rs"),
        ]
        .concat();
        let text = example();
        let keys: Vec<&str> = source
            .lines()
            .filter_map(|l| l.strip_prefix("    pub ")?.split_once(": ").map(|(key, _)| key))
            .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            // The lists of the tree itself are written as [[adapter]] and so on.
            .filter(|key| {
                !["adapters", "devices", "credentials", "upstreams", "relays", "records", "pulls", "rules", "alarms"]
                    .contains(key)
                    || *key == "devices"
            })
            .collect();
        assert!(keys.len() > 40, "{keys:?}");
        for key in keys {
            let named = [
                format!("\n{key} "),
                format!("\n# {key} "),
                format!("[{key}]"),
                format!("\n#   {key} "),
                format!("{key} ="),
            ];
            assert!(named.iter().any(|n| text.contains(n.as_str())), "the example lacks `{key}`");
        }
    }
}
