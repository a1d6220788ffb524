//! Viewers that come early, late and in either dialect, that are slow, stalled, listed and closed.

use super::*;

#[tokio::test]
async fn a_late_viewer_gets_everything_since_the_last_key_frame() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 100)]);
    let second: Vec<_> = std::iter::once(frame(Kind::Key, 80, 200_000))
        .chain((3..20).map(|n| frame(Kind::Delta, n * 40, 3000)))
        .collect();
    push.send(&second);
    rig.until(|info| info.counters.video_frames == 20).await;
    for container in [Container::Flv, Container::Flv] {
        let mut watcher = rig.watch(container);
        let head: Vec<_> = (0..3).map(|_| watcher.next().unwrap()).map(|unit| (unit.track, unit.kind)).collect();
        assert_eq!(head, [(Track::Data, Kind::Config), (Track::Video, Kind::Config), (Track::Audio, Kind::Config)]);
        assert_eq!(watcher.frames(18), second);
    }
    let mut live = rig.watch(Container::Flv);
    live.frames(18);
    push.send(&[frame(Kind::Delta, 800, 50)]);
    assert_eq!(live.next().unwrap(), frame(Kind::Delta, 800, 50));
    rig.close().await;
}

#[tokio::test]
async fn a_viewer_that_waits_is_let_in_when_the_stream_appears() {
    let rig = Rig::new(|config| config.wait_max_seconds = 10);
    let (appeared, push) = tokio::join!(async { rig.core.available(&Rig::name()).await }, async {
        tokio::task::yield_now().await;
        rig.publish().await
    });
    assert!(appeared.is_ok());
    drop(push);
    rig.close().await;
}

#[tokio::test]
async fn what_a_session_says_comes_between_the_tags() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish_key(300_000).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.socket.write_all(b"ping").unwrap();
    let mut answers = 0;
    let mut frames = 0;
    for n in 1.. {
        push.send(&[frame(Kind::Delta, n * 40, 20_000)]);
        while answers < 4 || frames < 10 {
            let unit = watcher.next().unwrap();
            answers += i32::from(unit.track == Track::Data && unit.kind == Kind::Delta);
            frames += i32::from(unit.track == Track::Video && unit.kind != Kind::Config);
            if frames > n as i32 {
                break;
            }
        }
        if answers == 4 && frames >= 10 {
            break;
        }
        assert!(n < 1000);
    }
    rig.close().await;
}

#[tokio::test]
async fn a_stalled_viewer_is_closed_and_costs_nobody_else_anything() {
    let rig = Rig::new(|config| {
        (config.stall_max_seconds, config.lag_max_ms, config.gop_kib) = (2, 500, 1024);
    });
    let mut push = rig.publish_key(1000).await;
    let stalled = rig.watch(Container::Flv);
    let mut healthy = rig.watch(Container::Flv);
    healthy.frames(1);
    let end = Instant::now() + Duration::from_secs(20);
    let mut sent = 0;
    // 8 MB/s for the few seconds until the core has lost patience with the one that reads nothing.
    while rig.core.list()[0].counters.viewers_stalled == 0 {
        assert!(Instant::now() < end, "{:#?}", rig.core.list());
        sent += 1;
        let kind = if sent % 25 == 0 { Kind::Key } else { Kind::Delta };
        push.send(&[frame(kind, sent * 40, 80_000)]);
        assert_eq!(healthy.next().unwrap().dts_90k, sent * 40 * 90);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let info = rig.core.list().remove(0);
    assert!(info.counters.skips >= 1, "it was moved ahead first: {info:#?}");
    assert!(info.kept_bytes < 4 * 1024 * 1024, "{} bytes kept", info.kept_bytes);
    assert_eq!(info.viewers, 1);
    drop(stalled);
    rig.close().await;
}

#[tokio::test]
async fn a_slow_viewer_goes_on_at_a_key_frame() {
    let rig = Rig::new(|config| {
        (config.lag_max_ms, config.gop_kib) = (400, 1024);
    });
    let mut push = rig.publish_key(1000).await;
    let mut slow = rig.watch(Container::Flv);
    slow.frames(1);
    let mut sent = 0;
    while rig.core.list()[0].counters.skips == 0 {
        sent += 1;
        let kind = if sent % 10 == 0 { Kind::Key } else { Kind::Delta };
        push.send(&[frame(kind, sent * 40, 80_000)]);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(sent < 4000);
    }
    let (mut last, mut gaps) = (0, 0);
    while last < sent {
        let unit = slow.next_frame().unwrap();
        let number = unit.dts_90k / 3600;
        assert_eq!(unit, frame(unit.kind, number * 40, 80_000), "whole frames");
        if number != last + 1 {
            gaps += 1;
            assert_eq!(unit.kind, Kind::Key, "after a gap the first frame is a key frame");
        }
        last = number;
    }
    assert!(gaps >= 1);
    rig.close().await;
}

#[tokio::test]
async fn viewers_are_listed_with_what_they_got_and_closed_by_number() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let mut first = rig.watch(Container::Flv);
    let mut second = rig.watch(Container::Rtmp);
    assert_eq!(first.frames(2).len(), 2);
    let listed = rig.core.viewers(&Rig::name()).await;
    assert_eq!(listed.iter().map(|viewer| viewer.container).collect::<Vec<_>>(), ["http-flv", "rtmp"]);
    assert_eq!(listed[0].peer, first.socket.local_addr().ok());
    assert_eq!((listed[0].tags, listed[0].skips, listed[0].lag_ms), (2, 0, 0));
    assert!(listed[0].bytes > 1500 && listed[0].written_us >= listed[0].since_us && listed[0].id < listed[1].id);
    assert!(listed[0].thread.starts_with("sg-stream-"));
    assert!(!rig.core.close_viewer(&Rig::name(), u64::MAX).await);
    assert!(rig.core.close_viewer(&Rig::name(), listed[1].id).await);
    second.socket.read_to_end(&mut Vec::new()).unwrap();
    push.send(&[frame(Kind::Delta, 80, 700)]);
    assert_eq!(first.frames(1), [frame(Kind::Delta, 80, 700)]);
    let left = rig.core.viewers(&Rig::name()).await;
    assert_eq!(left.iter().map(|viewer| (viewer.id, viewer.tags)).collect::<Vec<_>>(), [(listed[0].id, 3)]);
    rig.until(|info| info.counters.viewers_dismissed == 1).await;
    rig.close().await;
}

#[tokio::test]
async fn a_hot_stream_spills_to_another_thread_and_its_viewers_see_no_difference() {
    let rig = Rig::new(|config| config.spill_percent = 0);
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let (mut flv, mut rtmp) = (rig.watch(Container::Flv), rig.watch(Container::Rtmp));
    assert_eq!(flv.frames(2), [frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)], "all since the key frame");
    let listed = rig.core.viewers(&Rig::name()).await;
    let home = rig.core.list()[0].thread.clone();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|viewer| viewer.thread != home), "{listed:#?}, home is {home}");
    rig.until(|info| info.viewers == 2 && info.viewers_elsewhere == 2 && info.counters.bytes_out > 3000).await;

    // Another publisher: the viewers over there stay, and time goes on.
    let mut next = rig.publish().await;
    next.begin();
    next.send(&[frame(Kind::Key, 0, 2000), frame(Kind::Delta, 40, 700)]);
    let after = flv.frames(2);
    assert_eq!(after.iter().map(|unit| unit.data.len()).collect::<Vec<_>>(), [2004, 704]);
    assert!(after[0].dts_90k > 40 * 90 && after[1].dts_90k == after[0].dts_90k + 3600);

    assert!(rig.core.close_viewer(&Rig::name(), listed[1].id).await, "found on its thread");
    rtmp.socket.read_to_end(&mut Vec::new()).unwrap();
    rig.until(|info| info.viewers == 1 && info.counters.viewers_dismissed == 1).await;
    assert!(rig.core.end(&Rig::name()).await);
    assert_eq!(flv.next_frame(), None, "the end of the stream is the end there too");
    assert!(next.is_closed());
    assert!(rig.core.list().is_empty(), "the publisher's own end does not bring it back");
    assert!(rig.core.viewers(&Rig::name()).await.is_empty());
    rig.close().await;
}

fn hevc(kind: Kind, dts_ms: i64) -> Unit {
    let mut record = [0; 23];
    (record[0], record[21]) = (1, 0xff);
    let data: &[u8] = if kind == Kind::Config { &record } else { &[0, 0, 0, 2, 0x26, 1] };
    Unit { codec: Codec::H265, ..unit(Track::Video, kind, dts_ms, data) }
}

#[tokio::test]
async fn each_viewer_gets_h265_in_its_own_dialect() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.send(&[hevc(Kind::Config, 0), hevc(Kind::Key, 0)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    for (container, first) in [(Container::Flv, 0x91), (Container::FlvLegacy, 0x1c)] {
        let mut watcher = rig.watch(container);
        let body = loop {
            let mut buffer = [0; 4096];
            let read = watcher.socket.read(&mut buffer).unwrap();
            watcher.unread.extend_from_slice(&buffer[..read]);
            let bodies: Vec<Bytes> =
                std::iter::from_fn(|| take_tag(&mut watcher.unread).unwrap()).map(|t| t.body).collect();
            if bodies.len() == 3 {
                break bodies[2].clone();
            }
            assert!(bodies.is_empty(), "the head came in pieces");
        };
        assert_eq!(body[0], first, "{container:?}");
    }
    rig.close().await;
}

#[tokio::test]
async fn viewers_of_both_dialects_share_what_has_no_h265_until_there_is_some() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish_key(100).await;
    let mut plain = rig.watch(Container::Flv);
    plain.frames(1);
    rig.until(|info| info.viewers == 1).await;
    let alone = rig.core.list()[0].kept_bytes;
    let mut legacy = rig.watch(Container::FlvLegacy);
    legacy.frames(1);
    rig.until(|info| info.viewers == 2).await;
    assert_eq!(rig.core.list()[0].kept_bytes, alone, "a log of its own");
    push.send(&[hevc(Kind::Config, 40), hevc(Kind::Key, 40)]);
    assert_eq!(plain.next_frame().map(|unit| unit.codec), Some(Codec::H265));
    while legacy.next().is_some() {}
    rig.until(|info| info.viewers == 1).await;
    rig.close().await;
}
