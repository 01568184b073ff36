//! How long the host itself remembers UDP flows, in its connection tracking, and waits for parts of packets: we do likewise,
//! so that neither waits for the other.

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
    (
        seconds("netfilter/nf_conntrack_udp_timeout").unwrap_or(ONCE),
        seconds("netfilter/nf_conntrack_udp_timeout_stream").unwrap_or(STREAM),
    )
}

/// How long a packet may wait for its last part, over IPv4 and IPv6 (ip-sysctl: ipfrag_time, ip6frag_time); `None` where that
/// cannot be read.
pub fn fragment_timeouts() -> (Option<Span>, Option<Span>) {
    (seconds("ipv4/ipfrag_time"), seconds("ipv6/ip6frag_time"))
}

fn seconds(name: &str) -> Option<Span> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    parse(&text)
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
