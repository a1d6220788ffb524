//! What a path names.

use crate::media::StreamName;

const ENDING: &str = ".flv";

/// Whether a path is one of ours, by its ending.
pub(crate) fn is_at(path: &str) -> bool {
    path.ends_with(ENDING)
}

/// The stream that `/APP/NAME.flv` names.
pub(super) fn stream_of(path: &str) -> Option<StreamName> {
    StreamName::parse(path.strip_prefix('/')?.strip_suffix(ENDING)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_streams() {
        assert_eq!(stream_of("/live/gate-1.flv").unwrap().as_str(), "live/gate-1");
        for other in ["/", "/live.flv", "/live/.flv", "/live/x.mp4", "live/x.flv", "//x.flv", "/live/a b.flv"] {
            assert_eq!(stream_of(other), None, "{other}");
        }
    }
}
