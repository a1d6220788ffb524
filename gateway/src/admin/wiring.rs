//! How the console's views are read off the gateway's parts, and which figures are sampled from them.

use std::sync::Arc;
use std::time::Instant;

use device_models::Class;
use device_models::model::{Kind, Model};

use super::parts::{
    ActionView, AdapterView, Audience, Parts, PropertyView, RecordingLinks, RelayView, StoreView, StreamView,
    ThingView, UpstreamView,
};
use crate::bus::{Bus, Happening};
use crate::devices::ThingState;
use crate::metrics::{Figure, Metrics, Sample};
use crate::outlet::Outlets;
use crate::record::{RecordInfo, Recorder};
use crate::relay::RelayInfo;
use crate::stream::{StreamCore, StreamInfo};
use crate::transport::{Adapter, Listen, Services};
use crate::upstream::{Status, Upstream};
use crate::webrtc::Webrtc;

/// Bytes of a memory page on every target we build for.
const PAGE_BYTES: u64 = 4096;

impl Parts {
    /// The console of a gateway with these parts. `store_bytes_max`: what the store may take on disk.
    pub fn of(
        gateway: &str,
        services: &Services,
        adapters: Vec<AdapterView>,
        upstreams: Vec<Upstream>,
        webrtc: Option<Webrtc>,
        outlets: &Outlets,
        store_bytes_max: u64,
    ) -> Self {
        sample(services, outlets, store_bytes_max);
        let devices = services.intake.devices().clone();
        let (all, one, orders) = (devices.clone(), devices.clone(), devices);
        let (streams, bus, ready) = (services.streams.clone(), services.bus.clone(), services.bus.clone());
        let (intake, outlets) = (services.intake.clone(), outlets.clone());
        Self {
            recorder: outlets.recorder().cloned(),
            gateway: Arc::from(gateway),
            metrics: services.metrics.clone(),
            adapters,
            things: Box::new(move || all.snapshot().iter().map(thing_view).collect()),
            thing: Box::new(move |id| {
                one.by_id(id)?;
                one.snapshot().iter().find(|state| *state.id == *id).map(thing_view)
            }),
            audience: audience(services),
            streams: Box::new(move || streams.list().iter().map(|info| stream_view(info, &outlets)).collect()),
            upstreams: Box::new(move || upstreams.iter().map(|upstream| upstream_view(upstream.status())).collect()),
            store: Box::new(move || store_view(&bus, store_bytes_max)),
            live: Box::new(move || intake.live()),
            order: Box::new(move |thing, id, order, patience| {
                let devices = orders.clone();
                Box::pin(async move { devices.order(&thing, &id, order, patience).await })
            }),
            shadows: None,
            webrtc,
            ready: Box::new(move || match ready.stat().failures {
                0 => Ok(()),
                failures => Err(format!("{failures} batches could not be written to disk since the start")),
            }),
        }
    }
}

impl AdapterView {
    /// An adapter as configured, and the address it really bound.
    pub fn of(adapter: &Adapter) -> Self {
        let wire = match adapter.listen {
            Listen::Tcp(_) => "tcp",
            Listen::Tls(_) => "tls",
            Listen::Udp(_) => "udp",
            Listen::Serial { .. } => "serial",
        };
        Self {
            name: adapter.info.name.to_string(),
            protocols: adapter.languages.iter().map(|language| language.row.name().to_owned()).collect(),
            wire: wire.to_owned(),
            address: None,
        }
    }
}

fn audience(services: &Services) -> Audience {
    let [viewers, close, close_viewer] = [0; 3].map(|_| services.streams.clone());
    let [hls, closing] = [0; 2].map(|_| services.hls.clone());
    let [gatekeeper, linking, opening] = [0; 3].map(|_| Arc::clone(&services.gatekeeper));
    Audience {
        viewers: Box::new(move |stream| {
            let (streams, hls) = (viewers.clone(), hls.clone());
            Box::pin(async move {
                let mut all = streams.viewers(&stream).await;
                all.append(&mut hls.viewers(&stream));
                all
            })
        }),
        close: Box::new(move |stream| {
            let streams = close.clone();
            Box::pin(async move { streams.end(&stream).await })
        }),
        close_viewer: Box::new(move |stream, id| {
            let (streams, hls) = (close_viewer.clone(), closing.clone());
            Box::pin(async move { hls.close_viewer(&stream, id) || streams.close_viewer(&stream, id).await })
        }),
        link: Box::new(move |stream| gatekeeper.link(stream)),
        recordings: RecordingLinks {
            link: Box::new(move |id| linking.recording_link(id)),
            opens: Box::new(move |id, signature| opening.opens_recording(id, signature)),
        },
    }
}

// === views ===

fn thing_view(state: &ThingState) -> ThingView {
    let model: &Model = &state.model;
    let mut properties: Vec<PropertyView> = model
        .properties()
        .iter()
        .map(|property| PropertyView {
            name: property.name.to_string(),
            title: property.title.text.to_string(),
            unit: property.unit().map(str::to_owned),
            writable: property.access.writable(),
            kind: kind(&property.shape.kind),
            value: serde_json::Value::Null,
            quality: None,
            time_us: None,
        })
        .collect();
    for (name, latest) in &state.latest {
        let at = properties.iter().position(|p| *p.name == **name);
        let mut view = match at {
            Some(at) => properties.remove(at),
            // What the model does not know is shown too, under the device's own name.
            None => PropertyView {
                name: name.to_string(),
                title: name.to_string(),
                unit: None,
                writable: false,
                kind: latest.value.kind(),
                value: serde_json::Value::Null,
                quality: None,
                time_us: None,
            },
        };
        view.value = serde_json::Value::from(&latest.value);
        view.quality = Some(latest.quality);
        view.time_us = Some(latest.time_us);
        properties.insert(at.unwrap_or(properties.len()), view);
    }
    let actions = model.actions().iter().map(|action| ActionView {
        name: action.name.to_string(),
        title: action.title.text.to_string(),
        input: action.input.is_some(),
    });
    ThingView {
        id: state.id.to_string(),
        model: model.name().to_string(),
        title: model.title().text.to_string(),
        adapter: state.adapter.as_deref().map(str::to_owned),
        online: state.online,
        since_us: state.since_us,
        seen_us: state.seen_us,
        stream: model.has_stream(),
        shadow_version: 0,
        commands_waiting: 0,
        properties,
        actions: actions.collect(),
    }
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "boolean",
        Kind::Int(_) | Kind::TimeMs => "integer",
        Kind::F32 | Kind::F64 => "number",
        Kind::Text => "text",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "choice",
        Kind::Object(_) => "object",
        Kind::Array(_) => "array",
    }
}

fn stream_view(info: &StreamInfo, outlets: &Outlets) -> StreamView {
    let (width, height) = info.video.as_ref().map_or((0, 0), |video| (video.width, video.height));
    let own = outlets.info(&info.name);
    let relays = own.relays.into_iter().map(|relay| RelayView {
        url: relay.url,
        state: relay.state.as_str(),
        reason: relay.reason,
        error: relay.error,
        connections: relay.connections,
        bytes: relay.bytes,
        skipped: relay.skipped,
    });
    StreamView {
        name: info.name.clone(),
        live: info.live,
        since_us: info.since_us,
        video: info.video.as_ref().map(|video| video.codec.clone()),
        width,
        height,
        audio: info.audio.as_ref().map(|audio| audio.codec.clone()),
        fps: info.fps,
        bits_per_second: info.bits_per_second,
        viewers: info.viewers,
        viewers_elsewhere: info.viewers_elsewhere,
        lag_ms: info.lag_ms,
        key_interval_ms: info.key_interval_ms,
        kept_bytes: info.kept_bytes,
        thread: info.thread.clone(),
        video_frames: info.counters.video_frames,
        bytes_in: info.counters.bytes_in,
        bytes_out: info.counters.bytes_out,
        skips: info.counters.skips,
        faults: info.counters.faults,
        times_fixed: info.counters.times_fixed,
        relays: relays.collect(),
        records: own.records,
    }
}

fn upstream_view(status: Status) -> UpstreamView {
    UpstreamView {
        name: status.name,
        url: status.url,
        dialect: status.dialect.to_owned(),
        connected: status.connected,
        error: status.error,
        backlog: status.backlog,
        acked: status.acked,
        sent: status.messages,
    }
}

fn store_view(bus: &Bus, bytes_max: u64) -> StoreView {
    let stat = bus.stat();
    StoreView {
        epoch: format!("{:016x}", stat.epoch),
        bytes: stat.bytes,
        bytes_max,
        segments: stat.segments as u64,
        oldest: stat.oldest,
        durable: stat.through,
        buffered_bytes: stat.buffered_bytes as u64,
        evicted: stat.evicted,
        corrupt: stat.corrupt,
        failures: stat.failures,
    }
}

// === figures ===

/// Has the figures read that their owners keep.
fn sample(services: &Services, outlets: &Outlets, store_bytes_max: u64) {
    let metrics = &services.metrics;
    let bus = services.bus.clone();
    let counted = metrics.clone();
    bus.observe(move |happening| match happening {
        Happening::Committed(took) => counted.committed(took),
        Happening::Dropped { reason, count } => counted.dropped(reason, count),
    });
    metrics.sample(move || store_figures(&bus, store_bytes_max));
    let broker = services.broker.clone();
    metrics.sample(move || {
        let stat = broker.stat();
        let dropped = stat.dropped + stat.turned_away + stat.outdated + stat.retained_refused;
        vec![
            Sample::new(Figure::BrokerSessions, &[], stat.sessions as f64),
            Sample::new(Figure::BrokerQueued, &[], stat.queued_bytes as f64),
            Sample::new(Figure::BrokerDropped, &[], dropped as f64),
        ]
    });
    let streams = services.streams.clone();
    metrics.sample(move || streams.list().iter().flat_map(stream_figures).collect());
    let (streams, outlets) = (services.streams.clone(), outlets.clone());
    let kept = outlets.clone();
    metrics.sample(move || kept_figures(&kept));
    metrics.sample(move || streams.list().iter().flat_map(|info| outlet_figures(&info.name, &outlets)).collect());
    let core = services.streams.clone();
    metrics.sample(move || refused_figures(&core));
    let (streams, devices) = (services.streams.clone(), services.intake.devices().clone());
    let started = Instant::now();
    let threads: Metrics = metrics.clone();
    metrics.sample(move || {
        note_threads(&streams, &threads);
        let things = devices.snapshot();
        let online = things.iter().filter(|thing| thing.online).count();
        vec![
            Sample::new(Figure::Things, &[], things.len() as f64),
            Sample::new(Figure::ThingsOnline, &[], online as f64),
            Sample::new(Figure::Streams, &[], streams.list().iter().filter(|s| s.live).count() as f64),
            Sample::new(Figure::Uptime, &[], started.elapsed().as_secs_f64()),
            Sample::new(Figure::Resident, &[], resident_bytes() as f64),
        ]
    });
}

fn refused_figures(streams: &StreamCore) -> Vec<Sample> {
    let refused = streams.refused();
    let one = |reason, count: u64| Sample::new(Figure::StreamRefused, &[reason], count as f64);
    vec![
        one("publishers", refused.publishers),
        one("viewers", refused.viewers),
        one("orphans", refused.orphans),
        one("busy", refused.busy),
        Sample::new(Figure::CameraWordsReplaced, &[], refused.words as f64),
    ]
}

fn store_figures(bus: &Bus, bytes_max: u64) -> Vec<Sample> {
    let stat = bus.stat();
    let mut samples = vec![
        Sample::new(Figure::StoreBytes, &[], stat.bytes as f64),
        Sample::new(Figure::StoreBytesMax, &[], bytes_max as f64),
        Sample::new(Figure::StoreSegments, &[], stat.segments as f64),
        Sample::new(Figure::StoreBuffered, &[], stat.buffered_bytes as f64),
        Sample::new(Figure::StoreWaits, &[], stat.waits as f64),
        Sample::new(Figure::StoreEvicted, &[], stat.evicted as f64),
        Sample::new(Figure::StoreFree, &[], stat.free_bytes as f64),
        Sample::new(Figure::StoreCorrupt, &[], stat.corrupt as f64),
        Sample::new(Figure::StoreFailures, &[], (stat.failures + stat.keyed_failures) as f64),
    ];
    let by_class = [
        (Figure::StoreDurableSeq, stat.through),
        (Figure::StoreClassBytes, stat.class_bytes),
        (Figure::StoreOldest, stat.oldest_seconds),
        (Figure::StoreAppended, stat.appended),
        (Figure::StoreSettled, stat.settled),
        (Figure::StoreFailed, stat.failed),
    ];
    for (figure, values) in by_class {
        for (class, value) in Class::ALL.into_iter().zip(values) {
            samples.push(Sample::new(figure, &[class.topic()], value as f64));
        }
    }
    samples
}

fn stream_figures(info: &StreamInfo) -> Vec<Sample> {
    let name = info.name.as_str();
    let counters = &info.counters;
    let one = |figure, value: f64| Sample::new(figure, &[name], value);
    let gone = |reason, count: u64| Sample::new(Figure::StreamViewersGone, &[name, reason], count as f64);
    vec![
        gone("left", counters.viewers_left),
        gone("stalled", counters.viewers_stalled),
        gone("slow", counters.viewers_slow),
        gone("fault", counters.viewers_fault),
        gone("ended", counters.viewers_ended),
        gone("dismissed", counters.viewers_dismissed),
        one(Figure::StreamKeyless, counters.keyless_frames as f64),
        one(Figure::StreamGopsOver, counters.gops_over_limit as f64),
        one(Figure::StreamViewersElsewhere, info.viewers_elsewhere as f64),
        one(Figure::StreamLag, info.lag_ms as f64 / 1e3),
        one(Figure::StreamKept, info.kept_bytes as f64),
        one(Figure::StreamKeyInterval, info.key_interval_ms as f64 / 1e3),
        one(Figure::StreamViewers, info.viewers as f64),
        one(Figure::StreamBitRate, info.bits_per_second as f64),
        one(Figure::StreamFrameRate, info.fps),
        one(Figure::StreamBytesIn, info.counters.bytes_in as f64),
        one(Figure::StreamBytesOut, info.counters.bytes_out as f64),
        one(Figure::StreamFrames, info.counters.video_frames as f64),
        one(Figure::StreamSkips, info.counters.skips as f64),
        one(Figure::StreamAudioLeftOut, info.counters.audio_left_out as f64),
        one(Figure::StreamFaults, info.counters.faults as f64),
        one(Figure::StreamTimesFixed, info.counters.times_fixed as f64),
    ]
}

fn outlet_figures(stream: &str, outlets: &Outlets) -> Vec<Sample> {
    let own = outlets.info(stream);
    let of_relay = |relay: RelayInfo| {
        let one = |figure, value: f64| Sample::new(figure, &[stream, relay.url.as_str()], value);
        [
            one(Figure::RelaySending, f64::from(u8::from(relay.state.is_sending()))),
            one(Figure::RelayConnections, relay.connections as f64),
            one(Figure::RelayBytes, relay.bytes as f64),
            one(Figure::RelaySkipped, relay.skipped as f64),
        ]
    };
    let of_record = |record: RecordInfo| {
        let one = |figure, value: f64| Sample::new(figure, &[stream, record.rule.as_str()], value);
        [
            one(Figure::RecordActive, f64::from(u8::from(record.is_recording()))),
            one(Figure::RecordBytes, record.bytes as f64),
            one(Figure::RecordWrites, record.writes as f64),
            one(Figure::RecordSkipped, record.skipped as f64),
            one(Figure::RecordRemoved, record.removed as f64),
        ]
    };
    own.relays.into_iter().flat_map(of_relay).chain(own.records.into_iter().flat_map(of_record)).collect()
}

fn kept_figures(outlets: &Outlets) -> Vec<Sample> {
    let kept = outlets.recorder().map(Recorder::kept).unwrap_or_default();
    let of_rule = |(rule, count, bytes): (String, u64, u64)| {
        let one = |figure, value: u64| Sample::new(figure, &[rule.as_str()], value as f64);
        [one(Figure::Recordings, count), one(Figure::RecordingsBytes, bytes)]
    };
    kept.into_iter().flat_map(of_rule).collect()
}

fn note_threads(streams: &StreamCore, metrics: &Metrics) {
    for thread in streams.threads() {
        let lag = std::time::Duration::try_from_secs_f64(thread.lag_ms / 1000.0).unwrap_or_default();
        metrics.thread(&thread.name, thread.busy, lag);
    }
}

/// Resident memory, from `/proc` (Linux); 0 elsewhere.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
}
