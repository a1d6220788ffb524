//! The `Transport` field (RFC 2326, 12.39): what a client offers, in its order.

/// One way to send a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// On these channels of the connection, or on channels of our choice.
    Interleaved(Option<[u8; 2]>),
    /// As datagrams to these ports of the client.
    Udp([u16; 2]),
    /// Multicast, or a profile we do not have.
    Other,
}

/// Offers beyond this many are not looked at.
const OFFERS_MAX: usize = 8;

impl Offer {
    /// All offers of the field.
    pub(super) fn all(field: &str) -> impl Iterator<Item = Self> {
        field.split(',').take(OFFERS_MAX).map(Self::parse)
    }

    fn parse(offer: &str) -> Self {
        let mut words = offer.split(';').map(str::trim);
        let profile = words.next().unwrap_or_default().to_ascii_uppercase();
        let (mut interleaved, mut client_port, mut multicast) = (None, None, false);
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("multicast", _) => multicast = true,
                ("interleaved", range) => interleaved = pair(range),
                ("client_port", range) => client_port = pair::<u16>(range),
                _ => {}
            }
        }
        match (profile.as_str(), multicast) {
            ("RTP/AVP/TCP", false) => match interleaved {
                // Neighbours, as everybody asks for them.
                Some([rtp, rtcp]) if rtp == rtcp => Self::Other,
                channels => Self::Interleaved(channels),
            },
            ("RTP/AVP" | "RTP/AVP/UDP", false) => match client_port {
                Some([rtp, rtcp]) if rtp != rtcp && rtp != 0 && rtcp != 0 => Self::Udp([rtp, rtcp]),
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// `4-5`, or `4` for it and the next.
fn pair<T: std::str::FromStr + Copy + TryFrom<u32> + Into<u32>>(range: &str) -> Option<[T; 2]> {
    let (first, second) = range.split_once('-').unwrap_or((range, ""));
    let first: T = first.trim().parse().ok()?;
    let second = if second.is_empty() { T::try_from(first.into() + 1).ok() } else { second.trim().parse().ok() };
    Some([first, second?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_of_players() {
        for (field, offers) in [
            ("RTP/AVP/TCP;unicast;interleaved=0-1", vec![Offer::Interleaved(Some([0, 1]))]),
            ("RTP/AVP/TCP;interleaved=6", vec![Offer::Interleaved(Some([6, 7]))]),
            ("RTP/AVP/TCP;unicast", vec![Offer::Interleaved(None)]),
            ("RTP/AVP;unicast;client_port=5000-5001;mode=\"PLAY\"", vec![Offer::Udp([5000, 5001])]),
            ("RTP/AVP;multicast,RTP/AVP/UDP;unicast;client_port=5000", vec![Offer::Other, Offer::Udp([5000, 5001])]),
            ("RTP/SAVP;unicast;client_port=5000-5001", vec![Offer::Other]),
            ("RTP/AVP;unicast;client_port=0-1", vec![Offer::Other]),
            ("RTP/AVP;unicast;client_port=65535", vec![Offer::Other]),
            ("", vec![Offer::Other]),
        ] {
            assert_eq!(Offer::all(field).collect::<Vec<_>>(), offers, "{field}");
        }
    }
}
