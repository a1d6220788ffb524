//! A simulated camera: pushes an FLV clip over RTMP in real time, again and again, with timestamps that go on.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocols::media::flv::{Demux, take_tag};
use protocols::media::{Container, Kind, Track, Tracks, Unit, mux};
use protocols::rtmp::client::{Event, Publisher, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::{ANSWER_MAX, Counts, SimError};

/// The app the clips are pushed to.
const APP: &str = "live";
const CLOCK_HZ: i64 = 90_000;

/// A clip taken apart.
struct Clip {
    tracks: Tracks,
    /// In the file's order, without configurations.
    units: Vec<Unit>,
    /// From one round's begin to the next, in 1/90,000 s.
    period_90k: i64,
}

pub(super) async fn push(address: SocketAddr, name: &str, clip: Bytes, counts: Counts) -> Result<(), SimError> {
    let clip = Clip::read(&clip)?;
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let target = Target {
        host: address.ip().to_string(),
        port: address.port(),
        app: APP.to_owned(),
        name: name.to_owned(),
        secure: false,
    };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut publisher = Publisher::new(target, &seed);
    let mut buffer = BytesMut::with_capacity(8 * 1024);
    timeout(ANSWER_MAX, handshake(&mut stream, &mut publisher, &mut buffer)).await.map_err(|_| SimError::Silent)??;

    let mut mux = mux(Container::Rtmp);
    let mut out = BytesMut::from(&mux.preamble(&clip.tracks, 0)[..]);
    let began = Instant::now();
    for round in 0_i64.. {
        let offset = round * clip.period_90k;
        for unit in &clip.units {
            let unit = Unit { dts_90k: unit.dts_90k + offset, pts_90k: unit.pts_90k + offset, ..unit.clone() };
            let due = began + Duration::from_micros(unit.dts_90k.max(0) as u64 * 1_000_000 / CLOCK_HZ as u64);
            mux.unit(&unit, &mut out);
            wait(&mut stream, &mut publisher, &mut buffer, due).await?;
            out.extend_from_slice(&publisher.take());
            stream.write_all(&out.split()).await?;
            counts.note_frame();
        }
    }
    Ok(())
}

/// Talks until the server takes the stream.
async fn handshake(stream: &mut TcpStream, publisher: &mut Publisher, buffer: &mut BytesMut) -> Result<(), SimError> {
    while !publisher.is_ready() {
        stream.write_all(&publisher.take()).await?;
        while publisher.receive(buffer)?.is_some() {}
        if publisher.is_ready() {
            break;
        }
        stream.write_all(&publisher.take()).await?;
        hear(stream, buffer).await?;
        while publisher.receive(buffer)?.is_some() {}
    }
    Ok(stream.write_all(&publisher.take()).await?)
}

/// Waits until a unit is due, and listens meanwhile.
async fn wait(
    stream: &mut TcpStream,
    publisher: &mut Publisher,
    buffer: &mut BytesMut,
    due: Instant,
) -> Result<(), SimError> {
    loop {
        tokio::select! {
            () = sleep_until(due) => return Ok(()),
            heard = hear(stream, buffer) => heard?,
        }
        while let Some(event) = publisher.receive(buffer)? {
            if event != Event::Ready {
                return Err(SimError::Refused(format!("{event:?}")));
            }
        }
    }
}

async fn hear(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), SimError> {
    if stream.read_buf(buffer).await? == 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

impl Clip {
    fn read(file: &[u8]) -> Result<Self, SimError> {
        let mut rest = BytesMut::from(file);
        let (mut demux, mut tracks, mut units) = (Demux::default(), Tracks::default(), Vec::new());
        while let Some(tag) = take_tag(&mut rest)? {
            let Some(unit) = demux.unit(tag.tag, tag.dts_ms, tag.body)? else { continue };
            tracks.note(&unit);
            if unit.kind != Kind::Config && unit.track != Track::Data {
                units.push(unit);
            }
        }
        let period_90k = period(&units);
        // What begins after the next round has begun would run backwards there.
        units.retain(|unit| unit.dts_90k < period_90k);
        Ok(Self { tracks, units, period_90k })
    }
}

/// A round is as long as its video: the last frame lasts as long as the one before.
fn period(units: &[Unit]) -> i64 {
    let video: Vec<i64> = units.iter().filter(|unit| unit.track == Track::Video).map(|unit| unit.dts_90k).collect();
    match video.as_slice() {
        [first, .., before, last] => last - first + (last - before).max(1),
        // No video to speak of: a round a second is as good as any.
        _ => CLOCK_HZ,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clips_loop_without_a_seam() {
        for file in [&include_bytes!("../demo/clips/gate-1.flv")[..], include_bytes!("../demo/clips/yard-1.flv")] {
            assert!(file.len() <= 300 * 1024, "{} bytes", file.len());
            let clip = Clip::read(file).unwrap();
            assert!(clip.tracks.video.is_some() && clip.tracks.audio.is_some());
            assert_eq!(clip.period_90k, CLOCK_HZ * 96 / 10);
            for track in [Track::Video, Track::Audio] {
                let times: Vec<i64> = clip.units.iter().filter(|u| u.track == track).map(|u| u.dts_90k).collect();
                assert!(times.is_sorted() && times.last() < Some(&clip.period_90k), "{track:?}");
            }
            assert_eq!(clip.units.iter().find(|u| u.track == Track::Video).unwrap().kind, Kind::Key);
        }
    }
}
