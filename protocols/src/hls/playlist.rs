//! The text of playlists (RFC 8216, 4; rfc8216bis, 4.4).

use std::fmt::Write as _;

/// Version 6 is what EXT-X-MAP takes (RFC 8216, 7).
const HEAD: &str = "#EXTM3U\n#EXT-X-VERSION:6\n";

/// What a player should stay behind the end, in parts (rfc8216bis, 4.4.3.8: at least two, three where jitter counts).
const HOLD_BACK_PARTS: i64 = 3;

/// Segments from the end whose parts are still named: those in the last three target durations (6.2.2).
const PARTS_TARGETS: i64 = 3;

/// `index.m3u8`: the one variant there is.
#[derive(Debug, Clone, PartialEq)]
pub struct Multivariant {
    /// RFC 6381, separated by commas.
    pub codecs: String,
    /// Bits a second: the greatest of any segment, and all together.
    pub peak: u64,
    pub average: u64,
    /// Pixels; `None` without video.
    pub resolution: Option<(u16, u16)>,
    /// Frames a second, where known.
    pub frame_rate: Option<f64>,
}

/// `media.m3u8`. Times in 1/90,000 s.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// No segment is longer.
    pub target_seconds: i64,
    /// No part is longer.
    pub part_target_90k: i64,
    pub discontinuities_before: u64,
    /// Whole segments, the oldest first.
    pub segments: Vec<Listed>,
    /// The parts of the segment that is not whole yet.
    pub open: Option<Listed>,
    /// The number of the part that comes next; `None` when the stream has ended.
    pub next_part: Option<u64>,
}

/// A segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub number: u64,
    pub duration_90k: i64,
    /// The init segment it goes with.
    pub init: u64,
    /// It does not go on where the one before it ended, or its codecs are others.
    pub discontinuity: bool,
    /// When its first frame was made, microseconds since 1970 UTC.
    pub date_us: i64,
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub number: u64,
    pub duration_90k: i64,
    /// It begins with a frame from which decoding can start.
    pub independent: bool,
}

impl Multivariant {
    /// `carried` is the query every address gets; `viewer` tells this player from others.
    pub fn render(&self, carried: &str, viewer: u64) -> String {
        let mut out = HEAD.to_owned();
        out.push_str("#EXT-X-INDEPENDENT-SEGMENTS\n");
        say(&mut out, format_args!("#EXT-X-STREAM-INF:BANDWIDTH={},AVERAGE-BANDWIDTH={}", self.peak, self.average));
        say(&mut out, format_args!(",CODECS=\"{}\"", self.codecs));
        if let Some((width, height)) = self.resolution {
            say(&mut out, format_args!(",RESOLUTION={width}x{height}"));
        }
        if let Some(rate) = self.frame_rate {
            say(&mut out, format_args!(",FRAME-RATE={rate:.3}"));
        }
        let and = if carried.is_empty() { "" } else { "&" };
        say(&mut out, format_args!("\nmedia.m3u8?viewer={viewer:x}{and}{carried}\n"));
        out
    }
}

impl Media {
    /// `carried` is the query every address gets.
    pub fn render(&self, carried: &str) -> String {
        let mut out = String::with_capacity(512 + 64 * (self.segments.len() + 16));
        out.push_str(HEAD);
        say(&mut out, format_args!("#EXT-X-TARGETDURATION:{}\n", self.target_seconds));
        let hold_back = seconds(HOLD_BACK_PARTS * self.part_target_90k);
        say(&mut out, format_args!("#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK={hold_back}\n"));
        say(&mut out, format_args!("#EXT-X-PART-INF:PART-TARGET={}\n", seconds(self.part_target_90k)));
        let first = self.segments.first().or(self.open.as_ref()).map_or(0, |segment| segment.number);
        say(&mut out, format_args!("#EXT-X-MEDIA-SEQUENCE:{first}\n"));
        if self.discontinuities_before > 0 {
            say(&mut out, format_args!("#EXT-X-DISCONTINUITY-SEQUENCE:{}\n", self.discontinuities_before));
        }
        if self.is_independent() {
            out.push_str("#EXT-X-INDEPENDENT-SEGMENTS\n");
        }
        let query = if carried.is_empty() { String::new() } else { format!("?{carried}") };
        let mut init = None;
        let mut left: i64 = self.all().map(|segment| segment.duration_90k).sum();
        for segment in self.all() {
            segment.render_head(&mut init, &query, &mut out);
            if left <= PARTS_TARGETS * self.target_seconds * 90_000 && self.next_part.is_some() {
                segment.render_parts(&query, &mut out);
            }
            left -= segment.duration_90k;
            if self.open.as_ref().is_none_or(|open| open.number != segment.number) {
                let (number, duration) = (segment.number, seconds(segment.duration_90k));
                say(&mut out, format_args!("#EXTINF:{duration},\nsegment-{number}.m4s{query}\n"));
            }
        }
        match self.next_part {
            Some(next) => say(&mut out, format_args!("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-{next}.m4s{query}\"\n")),
            None => out.push_str("#EXT-X-ENDLIST\n"),
        }
        out
    }

    fn all(&self) -> impl Iterator<Item = &Listed> {
        self.segments.iter().chain(&self.open)
    }

    /// A group of pictures beyond the limits is cut where nothing can start: then the promise is not made.
    fn is_independent(&self) -> bool {
        self.all().all(|segment| segment.parts.first().is_none_or(|part| part.independent))
    }
}

impl Listed {
    fn render_head(&self, init: &mut Option<u64>, query: &str, out: &mut String) {
        if self.discontinuity {
            out.push_str("#EXT-X-DISCONTINUITY\n");
        }
        if init.replace(self.init) != Some(self.init) {
            say(out, format_args!("#EXT-X-MAP:URI=\"init-{}.mp4{query}\"\n", self.init));
        }
        say(out, format_args!("#EXT-X-PROGRAM-DATE-TIME:{}\n", date(self.date_us)));
    }

    fn render_parts(&self, query: &str, out: &mut String) {
        for part in &self.parts {
            let (number, duration) = (part.number, seconds(part.duration_90k));
            let independent = if part.independent { ",INDEPENDENT=YES" } else { "" };
            say(out, format_args!("#EXT-X-PART:DURATION={duration},URI=\"part-{number}.m4s{query}\"{independent}\n"));
        }
    }
}

fn say(out: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _infallible = out.write_fmt(words);
}

/// Seconds with five places, which a tick of the clock needs.
fn seconds(time_90k: i64) -> String {
    let hundred_thousandths = i128::from(time_90k.max(0)) * 10 / 9;
    format!("{}.{:05}", hundred_thousandths / 100_000, hundred_thousandths % 100_000)
}

/// RFC 3339, UTC, milliseconds.
fn date(us: i64) -> String {
    let (days, ms) = (us.div_euclid(86_400_000_000), us.rem_euclid(86_400_000_000) / 1_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of the days since 1970, by the Gregorian calendar, in eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(number: u64, parts: std::ops::Range<u64>) -> Listed {
        let part = |number| Part { number, duration_90k: 18_000, independent: number % 10 == 0 };
        Listed {
            number,
            duration_90k: 18_000 * (parts.end - parts.start) as i64,
            init: 100,
            discontinuity: false,
            date_us: 1_700_000_000_123_456,
            parts: parts.map(part).collect(),
        }
    }

    fn media() -> Media {
        Media {
            target_seconds: 2,
            part_target_90k: 18_450,
            discontinuities_before: 0,
            segments: (0..5).map(|n| listed(100 + n, n * 10..n * 10 + 10)).collect(),
            open: Some(listed(105, 50..52)),
            next_part: Some(52),
        }
    }

    #[test]
    fn a_live_playlist() {
        let text = media().render("");
        let head = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n\
            #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=0.61500\n#EXT-X-PART-INF:PART-TARGET=0.20500\n\
            #EXT-X-MEDIA-SEQUENCE:100\n#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"init-100.mp4\"\n\
            #EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:20.123Z\n#EXTINF:2.00000,\nsegment-100.m4s\n";
        assert!(text.starts_with(head), "{text}");
        let tail = "#EXT-X-PART:DURATION=0.20000,URI=\"part-50.m4s\",INDEPENDENT=YES\n\
            #EXT-X-PART:DURATION=0.20000,URI=\"part-51.m4s\"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-52.m4s\"\n";
        assert!(text.ends_with(tail), "{text}");
        // Parts are named in the last three target durations alone: 0.4 s of the open segment, and two whole ones.
        assert_eq!(text.matches("#EXT-X-PART:").count(), 22);
        assert_eq!((text.matches("#EXTINF:").count(), text.matches("#EXT-X-MAP").count()), (5, 1));
    }

    #[test]
    fn every_address_carries_the_key() {
        let text = media().render("key=a%2Fb");
        let addresses = text.lines().filter(|line| line.contains(".m4s") || line.contains(".mp4"));
        assert!(addresses.clone().count() > 20 && addresses.into_iter().all(|line| line.contains("?key=a%2Fb")));
        let multivariant = Multivariant {
            codecs: "avc1.64000c,mp4a.40.2".into(),
            peak: 9,
            average: 8,
            resolution: Some((320, 180)),
            frame_rate: Some(25.0),
        };
        let text = multivariant.render("key=a%2Fb", 255);
        assert_eq!(
            text,
            "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-STREAM-INF:BANDWIDTH=9,\
             AVERAGE-BANDWIDTH=8,CODECS=\"avc1.64000c,mp4a.40.2\",RESOLUTION=320x180,FRAME-RATE=25.000\n\
             media.m3u8?viewer=ff&key=a%2Fb\n"
        );
    }

    #[test]
    fn new_codecs_have_a_discontinuity_and_a_map() {
        let mut media = media();
        media.segments[3].discontinuity = true;
        media.segments[3].init = 103;
        media.segments[4].init = 103;
        media.open.as_mut().unwrap().init = 103;
        media.discontinuities_before = 2;
        let text = media.render("");
        assert!(text.contains("segment-102.m4s\n#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI=\"init-103.mp4\"\n"), "{text}");
        assert!(text.contains("#EXT-X-DISCONTINUITY-SEQUENCE:2\n") && text.matches("#EXT-X-MAP").count() == 2);
    }

    #[test]
    fn an_ended_stream_and_a_group_of_pictures_cut_in_the_middle() {
        let mut media = media();
        (media.open, media.next_part) = (None, None);
        media.segments[2].parts[0].independent = false;
        let text = media.render("");
        assert!(text.ends_with("segment-104.m4s\n#EXT-X-ENDLIST\n") && !text.contains("PART:"), "{text}");
        assert!(!text.contains("INDEPENDENT-SEGMENTS"));
    }

    #[test]
    fn dates_of_the_calendar() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399_999_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(date(us), text);
        }
    }
}
