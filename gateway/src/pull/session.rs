//! One connection to a camera, through `retina`: its frames as units.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream as _;
use protocols::media::h264::{self, AvcC};
use protocols::media::h265::{self, HvcC};
use protocols::media::rtp::DecodeOrder;
use protocols::media::{Codec, Kind, Track, Unit};
use retina::client::{
    Credentials, Demuxed, Described, InitialTimestampPolicy, PlayOptions, Session, SessionOptions, SetupOptions,
    Stream, TcpTransportOptions, Transport, UdpTransportOptions,
};
use retina::codec::{CodecItem, FrameFormat, ParametersRef};
use tracing::info;

use super::{Pull, PullError};

/// A camera that takes longer to answer all questions is not there.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A camera that sends nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A track that is carried.
#[derive(Debug)]
struct Carried {
    codec: Codec,
    order: DecodeOrder,
    /// Its configuration was handed on.
    told: bool,
}

/// Connects and hands on what comes until somebody ends it.
pub(super) async fn run(pull: &Pull) -> Result<(), PullError> {
    let slow = |what, after| move |_| PullError::Slow { what, after };
    let playing =
        tokio::time::timeout(ANSWER_MAX, play(pull)).await.map_err(slow("the camera's answer", ANSWER_MAX))?;
    let (mut demuxed, mut carried) = playing?;
    let origin = pull.url.host_str().unwrap_or_default();
    let feed = pull.means.streams.feed(&pull.stream, &format!("rtsp://{origin}"), None).await?;
    info!(stream = %pull.stream, origin, "the camera is pulled");
    pull.state("playing", "");
    loop {
        let next = poll_fn(|cx| Pin::new(&mut demuxed).poll_next(cx));
        let item = tokio::select! {
            item = tokio::time::timeout(SILENCE_MAX, next) => item.map_err(slow("the next frame", SILENCE_MAX))?,
            parted = feed.parted() => return Err(parted.into()),
        };
        let Some(item) = item else { return Ok(()) };
        let item = item.map_err(camera)?;
        pull.means.metrics.pull_lost(pull.stream.as_str(), lost(&item));
        for unit in units(item, demuxed.streams(), &mut carried) {
            feed.push(unit).await?;
        }
    }
}

fn camera(error: retina::Error) -> PullError {
    PullError::Camera(error.to_string())
}

async fn play(pull: &Pull) -> Result<(Demuxed, Vec<Option<Carried>>), PullError> {
    let creds = match &pull.password_file {
        None => None,
        Some(file) => {
            // Read anew each time: it may have been changed.
            let read = tokio::fs::read_to_string(file).await;
            let password = read.map_err(|error| PullError::Password { file: file.clone(), error })?;
            Some(Credentials { username: pull.user.clone(), password: password.trim_end().to_owned() })
        }
    };
    let options = SessionOptions::default().creds(creds).user_agent("sluicegate".to_owned());
    let mut session = Session::describe(pull.url.clone(), options).await.map_err(camera)?;
    let mut carried: Vec<Option<Carried>> = Vec::new();
    for stream in session.streams() {
        let codec = codec_of(stream).filter(|codec| {
            let same =
                |other: &Option<Carried>| other.as_ref().is_some_and(|other| other.codec.track() == codec.track());
            !carried.iter().any(same)
        });
        carried.push(codec.map(|codec| Carried { codec, order: DecodeOrder::default(), told: false }));
    }
    if carried.iter().all(Option::is_none) {
        return Err(PullError::NoTrack);
    }
    set_up(pull, &mut session, &carried).await?;
    let options = PlayOptions::default().initial_timestamp(InitialTimestampPolicy::Permissive);
    let demuxed = session.play(options).await.and_then(Session::demuxed).map_err(camera)?;
    Ok((demuxed, carried))
}

async fn set_up(pull: &Pull, session: &mut Session<Described>, carried: &[Option<Carried>]) -> Result<(), PullError> {
    for (at, _) in carried.iter().enumerate().filter(|(_, carried)| carried.is_some()) {
        let transport = if pull.udp {
            Transport::Udp(UdpTransportOptions::default())
        } else {
            Transport::Tcp(TcpTransportOptions::default())
        };
        let options = SetupOptions::default().transport(transport).frame_format(FrameFormat::MP4);
        session.setup(at, options).await.map_err(camera)?;
    }
    Ok(())
}

fn codec_of(stream: &Stream) -> Option<Codec> {
    match (stream.media(), stream.encoding_name()) {
        ("video", "h264") => Some(Codec::H264),
        ("video", "h265") => Some(Codec::H265),
        ("audio", "mpeg4-generic" | "mp4a-latm") => Some(Codec::Aac),
        ("audio", "pcma") => Some(Codec::G711A),
        ("audio", "pcmu") => Some(Codec::G711U),
        _ => None,
    }
}

/// RTP packets that did not come before this.
fn lost(item: &CodecItem) -> u64 {
    match item {
        CodecItem::VideoFrame(frame) => frame.loss().into(),
        CodecItem::AudioFrame(frame) => frame.loss().into(),
        _ => 0,
    }
}

/// The configuration, where it is new, and the frame.
fn units(item: CodecItem, streams: &[Stream], carried: &mut [Option<Carried>]) -> Vec<Unit> {
    let (at, ticks, clock, kind, data, new) = match item {
        CodecItem::VideoFrame(frame) => {
            let kind = if frame.is_random_access_point() { Kind::Key } else { Kind::Delta };
            let (at, time, new) = (frame.stream_id(), frame.timestamp(), frame.has_new_parameters());
            (at, time.elapsed(), time.clock_rate().get(), kind, Bytes::from(frame.into_data()), new)
        }
        CodecItem::AudioFrame(frame) => {
            let time = frame.timestamp();
            let data = Bytes::copy_from_slice(frame.data());
            (frame.stream_id(), time.elapsed(), time.clock_rate().get(), Kind::Key, data, false)
        }
        _ => return Vec::new(),
    };
    let Some(track) = carried.get_mut(at).and_then(Option::as_mut) else { return Vec::new() };
    let time_90k = i128::from(ticks) * 90_000 / i128::from(clock.max(1));
    let pts_90k = i64::try_from(time_90k).unwrap_or(0);
    let parameters = streams.get(at).and_then(Stream::parameters);
    let mut config = None;
    if let Some(data) = parameters.and_then(configuration).filter(|_| new || !track.told) {
        if let Some(depth) = reordering(track.codec, &data) {
            track.order.expect(depth);
        }
        track.told = true;
        config = Some(data);
    }
    let (codec, media) = (track.codec, track.codec.track());
    let dts_90k = if media == Track::Video { track.order.place(pts_90k) } else { pts_90k };
    let unit = |kind, pts_90k, data| Unit { track: media, codec, dts_90k, pts_90k, kind, data };
    let config = config.map(|data| unit(Kind::Config, dts_90k, data));
    config.into_iter().chain([unit(kind, pts_90k, data)]).collect()
}

fn configuration(parameters: ParametersRef<'_>) -> Option<Bytes> {
    let data = match parameters {
        ParametersRef::Video(video) => video.extra_data(),
        ParametersRef::Audio(audio) => audio.extra_data(),
        ParametersRef::Message(_) => return None,
    };
    (!data.is_empty()).then(|| Bytes::copy_from_slice(data))
}

fn reordering(codec: Codec, config: &[u8]) -> Option<u32> {
    match codec {
        Codec::H264 => h264::reorder_max(AvcC::parse(config).ok()?.sps.first()?),
        Codec::H265 => h265::reorder_max(HvcC::parse(config).ok()?.sps.first()?),
        _ => None,
    }
}
