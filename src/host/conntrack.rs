//! How long the host's own connection tracking remembers UDP flows: ours live as long, so that neither waits for the other.

use std::fs;

use crate::net::Span;

/// Linux's defaults of nf_conntrack_udp_timeout and nf_conntrack_udp_timeout_stream.
const ONCE: Span = Span::secs(30);
const STREAM: Span = Span::secs(120);

/// The longest that is heeded: a day.
const LONGEST: u64 = 86_400;

/// How long a UDP flow lives after its last datagram: one that has seen no answer, and one that has seen datagrams go back
/// and forth. What cannot be read is Linux's default.
pub fn udp_timeouts() -> (Span, Span) {
    let seconds = |name: &str| {
        fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))
            .ok()
            .and_then(|text| parse(&text))
    };
    (
        seconds("udp_timeout").unwrap_or(ONCE),
        seconds("udp_timeout_stream").unwrap_or(STREAM),
    )
}

fn parse(text: &str) -> Option<Span> {
    let seconds: u64 = text.trim().parse().ok()?;
    Some(Span::secs(seconds.clamp(1, LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_within_reason() {
        assert_eq!(parse("30\n"), Some(Span::secs(30)));
        assert_eq!(parse("0"), Some(Span::secs(1)));
        assert_eq!(parse("999999999"), Some(Span::secs(LONGEST)));
        assert_eq!((parse(""), parse("-1"), parse("x")), (None, None, None));
    }
}
