//! The table of figures: one line each, in the order of the page that `docs/metrics.md` shows. A new figure is a line here.

/// One figure.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub figure: Figure,
    /// Without prefix; a counter's name ends in `_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Seconds, in buckets.
    Histogram,
    /// A counter that its owner keeps: read when somebody asks.
    SampledCounter,
    /// A gauge that its owner keeps: read when somebody asks.
    SampledGauge,
}

macro_rules! figures {
    ($($figure:ident $name:literal $kind:ident [$($label:literal),*] $help:literal;)*) => {
        /// The figures by name, for [`Metrics::add`](super::Metrics::add) and [`Sample`](super::Sample).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Figure { $($figure,)* }

        /// Every figure there is; `docs/metrics.md` is checked against it.
        pub const TABLE: &[Row] = &[
            $(Row { figure: Figure::$figure, name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

figures! {
    MessagesReceived "messages_received_total" Counter ["adapter"] "Reports taken in and made a message";
    Points "points_total" Counter ["adapter", "quality"] "Property values taken in, by quality";
    Held "held_values_total" Counter ["adapter"] "Values that a rule held back: acknowledged, and not passed on as they are";
    Refused "refused_total" Counter ["adapter", "reason"] "Reports refused, by reason";
    Faults "faults_total" Counter ["adapter", "protocol"] "Departures from the protocol by peers";
    Connections "connections" Gauge ["adapter"] "Peers connected now";
    PullUp "pull_up" Gauge ["stream"] "1 while the camera is pulled by RTSP";
    PullFailures "pull_failures_total" Counter ["stream"] "Connections to a pulled camera that failed or broke";
    PullLost "pull_packets_lost_total" Counter ["stream"] "RTP packets of a pulled camera that did not come";
    PacketsLost "packets_lost_total" Counter ["adapter"] "UDP packets of streams that found the kernel's buffers full";
    PacketsMissing "packets_missing_total" Counter ["adapter"] "RTP packets of cameras (GB/T 28181) that did not come over UDP; their pictures are left out";
    ConnectionsRefused "connections_refused_total" Counter ["adapter", "reason"] "Connections turned away, by reason";
    Hooks "hooks_total" Counter ["event", "result"] "Hooks asked and told, by what came back: allowed, denied, unreachable, dropped (the queue was full)";
    TlsReloads "tls_reloads_total" Counter ["result"] "Changed certificates of listeners that were read again: ok, or failed (the one before stays)";
    BytesIn "bytes_in_total" Counter ["adapter"] "Bytes received from peers";
    BytesOut "bytes_out_total" Counter ["adapter"] "Bytes sent to peers";
    UpstreamDropped "upstream_dropped_total" Counter ["upstream", "reason"] "Messages that one upstream did not get and will not get, by reason (oversize, unreadable, refused); each is named by a hole";
    Dropped "dropped_total" Counter ["reason"] "Messages given up before every upstream had them, by reason; each is named by a gap record";
    LeftOut "left_out_total" Counter ["upstream", "reason"] "Values and messages that an upstream's dialect has no words for, by reason; docs/dialects.md says which";
    Filtered "filtered_total" Counter ["upstream"] "Messages that the upstream's filter does not want";
    Commands "commands_total" Counter ["result"] "Commands to things, by how they ended";
    CommandsWaiting "commands_waiting" SampledGauge [] "Commands that wait for their thing";
    CommandsWaitingMax "commands_waiting_max" SampledGauge [] "Commands that may wait (shadow.commands_max)";
    CommandsWaitingOldest "commands_waiting_oldest_seconds" SampledGauge [] "How long the oldest waiting command has waited; 0 without one";
    CommandsWaited "commands_waited_total" Counter ["result"] "Waiting commands by how it ended: delivered, expired, cancelled, refused (a limit, the model), unknown (handed over before a restart)";
    Shadows "shadows" SampledGauge [] "Things with desired values";
    ShadowBytes "shadow_bytes" SampledGauge [] "Bytes of desired values and waiting commands, of shadow.memory_mib";
    CommandSeconds "command_duration_seconds" Histogram ["result"] "Time from an order to its outcome";
    LinkUp "link_up" Gauge ["upstream"] "1 while the upstream is connected";
    Unanswered "unanswered_total" Counter ["upstream"] "Times that a receiver did not acknowledge in time, so that everything went again";
    LinkFailures "link_failures_total" Counter ["upstream"] "Connections to the upstream that failed or broke";
    Backlog "backlog_messages" Gauge ["upstream", "class"] "Messages the upstream does not have yet";
    BacklogOldest "backlog_oldest_seconds" Gauge ["upstream", "class"] "Age of the oldest message the upstream does not have yet, as last looked at; 0 without one";
    AckedSeq "acked_seq" Gauge ["upstream", "class"] "Highest sequence number the upstream acknowledged with all before it";
    MessagesSent "messages_sent_total" Counter ["upstream"] "Messages the upstream acknowledged";
    UpstreamBytes "upstream_bytes_total" Counter ["upstream"] "Payload bytes sent to the upstream, repeats included";
    StoreBytes "store_bytes" SampledGauge [] "Bytes the store takes on disk";
    StoreBytesMax "store_bytes_max" SampledGauge [] "Bytes the store may take on disk";
    StoreClassBytes "store_class_bytes" SampledGauge ["class"] "Bytes of messages on disk, by class";
    StoreFree "store_free_bytes" SampledGauge [] "Bytes left on the disk of the store";
    StoreOldest "store_oldest_seconds" SampledGauge ["class"] "The most seconds that the oldest message can be old which not every upstream has; 0 without one";
    StoreAppended "store_appended_total" SampledCounter ["class"] "Messages given a sequence number";
    StoreSettled "store_settled_total" SampledCounter ["class"] "Messages that came to be on disk";
    StoreFailed "store_failed_total" SampledCounter ["class"] "Messages that could not be written, were not acknowledged, and are named by a gap record";
    StoreCommit "store_commit_duration_seconds" Histogram [] "Time to write a batch of messages and make it durable";
    StoreDurableSeq "store_durable_seq" SampledGauge ["class"] "Sequence number through which messages are on disk, by class";
    StoreSegments "store_segments" SampledGauge [] "Segment files of the log";
    StoreBuffered "store_buffered_bytes" SampledGauge [] "Bytes on their way to the log's files";
    StoreWaits "store_waits_total" SampledCounter [] "Appends that waited for room in the buffer";
    StoreEvicted "store_evicted_segments_total" SampledCounter [] "Segment files let go of before every upstream had them";
    StoreCorrupt "store_corrupt_total" SampledCounter [] "Sequence numbers found damaged on reading, once for each reader";
    StoreFailures "store_failures_total" SampledCounter [] "Writes to disk that failed";
    Things "things" SampledGauge [] "Things known";
    ThingsOnline "things_online" SampledGauge [] "Things online now";
    ThingsForgotten "things_forgotten_total" Counter ["adapter"] "Things that had registered themselves and were forgotten for newer ones";
    Streams "streams" SampledGauge [] "Live streams";
    StreamRefused "streams_refused_total" SampledCounter ["reason"] "Publishers and viewers that the streaming core turned away: publishers and viewers above their limits (and publishers of live streams without takeover), orphans of a stream that was gone, those that found a busy thread";
    CameraWordsReplaced "camera_words_replaced_total" SampledCounter [] "Words of cameras about their streams that gave way to newer ones of theirs while the intake was full";
    StreamViewers "stream_viewers" SampledGauge ["stream"] "Viewers of the stream";
    StreamViewersElsewhere "stream_viewers_elsewhere" SampledGauge ["stream"] "Of these, served by other stream threads than the stream's own";
    StreamLag "stream_viewer_lag_seconds" SampledGauge ["stream"] "How far the viewer that is furthest behind is, media time";
    StreamKept "stream_kept_bytes" SampledGauge ["stream"] "Bytes kept since the last key frame, in every container in use";
    StreamKeyInterval "stream_key_interval_seconds" SampledGauge ["stream"] "Media time between the last two key frames";
    StreamBitRate "stream_bits_per_second" SampledGauge ["stream"] "Bit rate of the stream's source";
    StreamFrameRate "stream_frames_per_second" SampledGauge ["stream"] "Video frames a second of the stream's source";
    StreamBytesIn "stream_bytes_in_total" SampledCounter ["stream"] "Bytes of media the source sent";
    StreamBytesOut "stream_bytes_out_total" SampledCounter ["stream"] "Bytes of media sent to viewers";
    StreamFrames "stream_frames_total" SampledCounter ["stream"] "Video frames the source sent";
    StreamSkips "stream_skips_total" SampledCounter ["stream"] "Jumps of viewers that had fallen behind";
    StreamViewersGone "stream_viewers_gone_total" SampledCounter ["stream", "reason"] "Viewers that went, by reason: left, stalled, slow, fault, ended, dismissed";
    StreamKeyless "stream_keyless_frames_total" SampledCounter ["stream"] "Video frames before a publisher's first key frame, which nobody could decode";
    StreamGopsOver "stream_gops_over_limit_total" SampledCounter ["stream"] "Groups of pictures too large to be kept, from which no viewer could start";
    StreamAudioLeftOut "stream_audio_left_out_total" SampledCounter ["stream"] "Audio packets browsers could not play that were left out";
    StreamFaults "stream_faults_total" SampledCounter ["stream"] "Broken messages of the source, and tracks that are not carried";
    StreamTimesFixed "stream_times_fixed_total" SampledCounter ["stream"] "Timestamps of the source that were corrected";
    WebrtcSessions "webrtc_sessions" Gauge ["role"] "WebRTC sessions, by what the peer does: watch (WHEP), publish (WHIP)";
    WebrtcEnded "webrtc_ended_total" Counter ["reason"] "WebRTC sessions that ended, by reason";
    WebrtcBytes "webrtc_bytes_total" Counter ["direction"] "Bytes of WebRTC datagrams, in and out";
    WebrtcDropped "webrtc_datagrams_dropped_total" Counter ["reason"] "WebRTC datagrams thrown away, by reason";
    WebrtcKeyRequests "webrtc_key_requests_total" Counter ["answer"] "Requests for key frames: of viewers (repeated, or soon-enough after the last), and of ours to publishers (asked)";
    WebrtcSkips "webrtc_skips_total" Counter ["reason"] "Times that a WebRTC session left frames out up to a key frame, by reason";
    WebrtcReordered "webrtc_reordered_total" Counter [] "WebRTC viewers of a stream with B-frames, which browsers show out of order";
    RelaySending "relay_sending" SampledGauge ["stream", "url"] "1 while the relay sends the stream";
    RelayConnections "relay_connections_total" SampledCounter ["stream", "url"] "Connections the relay made";
    RelayBytes "relay_bytes_total" SampledCounter ["stream", "url"] "Bytes of media the relay sent";
    RelaySkipped "relay_skipped_units_total" SampledCounter ["stream", "url"] "Access units the relay left out: its server was too slow, or its budget too small";
    RecordActive "record_active" SampledGauge ["stream", "rule"] "1 while the stream is kept on disk by the rule";
    RecordBytes "record_bytes_total" SampledCounter ["stream", "rule"] "Bytes of recordings written";
    RecordWrites "record_writes_total" SampledCounter ["stream", "rule"] "Writes to recordings, each made durable at once unless sync is off";
    RecordSkipped "record_skipped_units_total" SampledCounter ["stream", "rule"] "Access units and pieces that are not in a recording: the disk was too slow";
    RecordRemoved "record_removed_total" SampledCounter ["stream", "rule"] "Recordings removed to make room for this stream's";
    Recordings "recordings" SampledGauge ["rule"] "Recordings on disk";
    RecordingsBytes "recordings_bytes" SampledGauge ["rule"] "Bytes of recordings on disk";
    AlarmsMissed "alarms_missed_total" Counter [] "Events that came too fast to be looked at as alarms of relays and recordings";
    OutletReportsDropped "outlet_reports_dropped_total" Counter [] "Words of relays and recordings about cameras that found the intake full";
    HlsStreams "hls_streams" SampledGauge [] "Streams kept in memory for HLS";
    HlsViewers "hls_viewers" SampledGauge ["stream"] "Players of the stream that asked for a playlist lately";
    HlsBytes "hls_bytes" SampledGauge ["stream"] "Bytes of segments kept in memory";
    HlsRequests "hls_requests_total" Counter ["piece"] "Requests of HLS players that were let in, by what they asked for";
    HlsSent "hls_sent_bytes_total" Counter [] "Bytes of playlists and pieces given to HLS players";
    HlsRefused "hls_refused_total" Counter ["reason"] "Requests of HLS players that were let in and got nothing, by reason";
    ThreadBusy "thread_busy_ratio" Gauge ["thread"] "Part of the time a pinned thread works, 0 to 1";
    ThreadLag "thread_loop_lag_seconds" Gauge ["thread"] "Longest wait of a pinned thread's loop in its last second";
    BrokerSessions "broker_sessions" SampledGauge [] "MQTT sessions kept";
    BrokerQueued "broker_queued_bytes" SampledGauge [] "Bytes waiting for MQTT sessions";
    BrokerDropped "broker_dropped_total" SampledCounter [] "MQTT messages dropped at a queue's limit";
    LiveViewers "admin_live_clients" Gauge [] "Clients of the live feed";
    LiveDropped "admin_live_dropped_total" Counter [] "Messages the live feed left out for clients that were too slow";
    AdminRefused "admin_refused_total" Counter ["reason"] "Requests to the console and API turned away, by reason";
    ConsumerReceived "consumer_received_total" SampledCounter [] "Messages the reference consumer in this process has (demo only)";
    ConsumerMissing "consumer_missing" SampledGauge [] "Sequence numbers the reference consumer misses (demo only)";
    ConsumerDuplicates "consumer_duplicates_total" SampledCounter [] "Repeated messages the reference consumer left out (demo only)";
    Resident "process_resident_memory_bytes" SampledGauge [] "Resident memory of the process";
    Uptime "uptime_seconds" SampledGauge [] "Seconds since the gateway started";
}

impl Row {
    /// The name as the registry wants it: it puts `_total` behind a counter itself.
    pub(super) fn plain_name(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}
