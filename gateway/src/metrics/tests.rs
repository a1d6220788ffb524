//! The table, the text and its limits, and the page of the documentation.

use std::collections::BTreeSet;

use super::*;

#[test]
fn every_row_stands_at_its_figure_and_is_named_by_the_rules() {
    let mut names = BTreeSet::new();
    for (at, row) in TABLE.iter().enumerate() {
        assert_eq!(row.figure as usize, at, "{}", row.name);
        assert!(names.insert(row.name), "{} stands there twice", row.name);
        assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", row.name);
        let counts = matches!(row.kind, Kind::Counter | Kind::SampledCounter);
        assert_eq!(counts, row.name.ends_with("_total"), "{}: only counters end in _total", row.name);
        assert!(!row.help.is_empty() && !row.help.ends_with('.'), "{}", row.name);
    }
}

#[test]
fn counted_figures_are_in_the_text() {
    let metrics = Metrics::new();
    let clone = metrics.clone();
    clone.received("door");
    clone.received("door");
    clone.refused("door", "type");
    clone.connected("door");
    clone.connected("door");
    clone.disconnected("door");
    clone.backlog("cloud", Class::Live, 17);
    clone.command("ok", Duration::from_millis(20));
    metrics.sample(|| {
        vec![
            Sample::new(Figure::StreamViewers, &["live/gate-1"], 3.0),
            Sample::new(Figure::StreamFrames, &["live/gate-1"], 250.0),
        ]
    });
    let text = metrics.encode();
    for line in [
        "sluicegate_messages_received_total{adapter=\"door\"} 2",
        "sluicegate_refused_total{adapter=\"door\",reason=\"type\"} 1",
        "sluicegate_connections{adapter=\"door\"} 1.0",
        "sluicegate_backlog_messages{upstream=\"cloud\",class=\"live\"} 17.0",
        "sluicegate_command_duration_seconds_count{result=\"ok\"} 1",
        "sluicegate_stream_viewers{stream=\"live/gate-1\"} 3.0",
        "sluicegate_stream_frames_total{stream=\"live/gate-1\"} 250.0",
        "sluicegate_admin_live_dropped_total{} 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
}

#[test]
fn invented_label_values_do_not_grow_the_table_without_end() {
    let metrics = Metrics::new();
    for n in 0..SERIES_MAX * 3 {
        metrics.fault(&format!("adapter-{n}"), "raw");
    }
    let text = metrics.encode();
    let lines = text.lines().filter(|l| l.starts_with("sluicegate_faults_total{")).count();
    assert_eq!(lines, SERIES_MAX + 1);
    let other = format!("sluicegate_faults_total{{adapter=\"other\",protocol=\"other\"}} {}", SERIES_MAX * 2);
    assert!(text.lines().any(|l| l == other), "{other}");
}

/// The page of the documentation: a table of [`TABLE`].
fn page() -> String {
    let head = "# Metrics\n\n`GET /metrics` on the console's port answers OpenMetrics text. Every figure there is:\n\n\
                | name | kind | labels | is |\n|---|---|---|---|\n";
    TABLE.iter().fold(head.to_owned(), |page, row| {
        let kind = match row.kind {
            Kind::Counter | Kind::SampledCounter => "counter",
            Kind::Gauge | Kind::SampledGauge => "gauge",
            Kind::Histogram => "histogram",
        };
        page + &format!("| `{PREFIX}_{}` | {kind} | {} | {} |\n", row.name, row.labels.join(", "), row.help)
    })
}

#[test]
fn the_documentation_has_every_figure() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page(), "docs/metrics.md must read:\n{}", page());
}

#[test]
fn a_long_label_value_is_cut_at_a_letter() {
    let metrics = Metrics::new();
    metrics.received(&"设".repeat(1000));
    let longest = metrics.encode().lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 300, "{longest}");
}
