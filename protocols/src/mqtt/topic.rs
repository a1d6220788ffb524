//! Topic names and filters (4.7): what is valid, what matches, `$share`.
//!
//! Topics are any UTF-8 but U+0000, of any alphabet: the first character being outside ASCII means nothing.

/// Levels a topic or filter may have: a bound on the work that one topic costs the router.
pub const LEVELS_MAX: usize = 128;

/// Whether a message can be published to it; says what is wrong.
pub fn check_name(topic: &str) -> Result<(), &'static str> {
    if topic.is_empty() {
        return Err("empty topic");
    }
    if topic.contains(['+', '#']) {
        return Err("wildcard in a topic name");
    }
    check_common(topic)
}

/// Whether it can be subscribed to; says what is wrong. Judges the filter inside a `$share/GROUP/` too.
pub fn check_filter(filter: &str) -> Result<(), &'static str> {
    let filter = match shared(filter) {
        Shared::No => filter,
        Shared::Yes { filter, .. } => filter,
        Shared::Broken => return Err("shared subscription without a plain group name and a filter"),
    };
    if filter.is_empty() {
        return Err("empty topic filter");
    }
    check_common(filter)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level == "#" && levels.peek().is_some() {
            return Err("`#` before the last level");
        }
        if level.len() > 1 && level.contains(['+', '#']) {
            return Err("wildcard beside other characters in a level");
        }
    }
    Ok(())
}

fn check_common(topic: &str) -> Result<(), &'static str> {
    if topic.len() > usize::from(u16::MAX) {
        return Err("topic longer than 65535 bytes");
    }
    if topic.contains('\0') {
        return Err("U+0000 in a topic");
    }
    if topic.bytes().filter(|byte| *byte == b'/').count() >= LEVELS_MAX {
        return Err("topic of more than 128 levels");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared<'a> {
    No,
    Yes {
        group: &'a str,
        filter: &'a str,
    },
    /// It begins like a shared subscription and is none.
    Broken,
}

/// Takes `$share/GROUP/FILTER` apart (MQTT 5, 4.8.2).
pub fn shared(filter: &str) -> Shared<'_> {
    let Some(rest) = filter.strip_prefix("$share") else { return Shared::No };
    let Some(rest) = rest.strip_prefix('/') else {
        return if rest.is_empty() { Shared::Broken } else { Shared::No };
    };
    match rest.split_once('/') {
        Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty() => {
            Shared::Yes { group, filter }
        }
        _ => Shared::Broken,
    }
}

/// Whether the (valid, not shared) filter takes the topic. A leading wildcard does not take a topic that starts with
/// `$` (4.7.2).
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        match topic.next() {
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_first_char_not_ascii() {
        assert_eq!(check_name("设备/1"), Ok(()));
        assert_eq!(check_filter("设备/+"), Ok(()));
        assert!(matches("设备/+", "设备/1"));
        assert!(matches("+/1", "设备/1"));
        assert!(matches("#", "é"));
    }

    #[test]
    fn names_and_filters_are_judged() {
        for bad in ["", "a/#", "a/+/b", "+", "nul\0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for bad in
            ["", "a/#/b", "a#", "#/a", "a+/b", "nul\0", "$share", "$share/g", "$share//a", "$share/g/", "$share/+/a"]
        {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
        for good in ["#", "+", "a/#", "+/+/b", "/", "//", "$SYS/#", "$share/g/#", "$share/g//x", "$shared/x"] {
            assert_eq!(check_filter(good), Ok(()), "{good:?}");
        }
        assert!(check_name(&"/".repeat(200)).is_err());
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, takes) in [
            ("sport/#", "sport", true),
            ("sport/#", "sport/a/b", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), takes, "{filter} {topic}");
        }
    }
}
