//! A camera as ffmpeg plays it: a test picture and a tone, encoded once and pushed at their own pace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Child, run_ok, shell};

/// What most cameras send: no frame waits for a later one.
pub const H264: &str = "-c:v libx264 -preset ultrafast -bf 0 -g 25 -pix_fmt yuv420p";

/// The same with frames that are shown in another order than they are sent.
pub const H264_REORDERED: &str = "-c:v libx264 -preset ultrafast -bf 2 -g 25 -pix_fmt yuv420p";

pub const H265: &str = "-c:v libx265 -preset ultrafast -x265-params log-level=error -g 25 -pix_fmt yuv420p";

pub const AAC: &str = "-c:a aac -b:a 64k";

/// `clip.flv` in `folder`: 320x180 at 25 frames a second, encoded by `ffmpeg` (its path) as `codecs` says.
pub fn clip(folder: &Path, ffmpeg: &str, seconds: u32, codecs: &str) -> PathBuf {
    let file = folder.join("clip.flv");
    shell(&format!(
        "{ffmpeg} -y -hide_banner -loglevel error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=44100 \
         {codecs} -t {seconds} -f flv {} 2>&1",
        file.display()
    ));
    file
}

/// Pushes a clip by RTMP; `how` stands before the input.
pub fn push(ffmpeg: &str, clip: &Path, url: &str, how: &[&str]) -> Child {
    let mut command = Command::new(ffmpeg);
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-re"]).args(how).arg("-i").arg(clip);
    command.args(["-c", "copy", "-f", "flv", url]);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Packets of video that ffprobe gets from a player's address within `seconds` of the stream.
pub fn video_packets(url: &str, seconds: u32) -> u32 {
    let span = format!("%+{seconds}");
    let what = ["-v", "error", "-select_streams", "v", "-count_packets", "-read_intervals", &span];
    let show = ["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", url];
    run_ok("ffprobe", &[&what[..], &show[..]].concat()).trim().parse().expect("a number of packets")
}
