//! The host's resolver configuration (resolv.conf(5)).

use std::{fs, path::Path};

use resolv_conf::{Config, ScopedIp};

use crate::config::Resolver;

/// Where it is found.
pub const PATH: &str = "/etc/resolv.conf";

/// Reads the file at `path`. One that is missing or unreadable says nothing, and a line that makes no sense says nothing
/// either: the host's own resolver treats both that way.
pub fn read(path: &Path) -> Resolver {
    parse(&fs::read(path).unwrap_or_default())
}

/// Reads the text of such a file.
pub fn parse(text: &[u8]) -> Resolver {
    let (config, _) = Config::parse_with_errors(text);
    let search = config
        .get_last_search_or_domain()
        .map(|domain| domain.trim_end_matches('.').to_owned())
        .filter(|domain| !domain.is_empty())
        .collect();
    let mut resolver = Resolver {
        search,
        ..Resolver::default()
    };
    for server in &config.nameservers {
        match server {
            ScopedIp::V4(addr) => resolver.servers4.push(*addr),
            // The zone of a link-local server goes: link-local flows leave by the template interface.
            ScopedIp::V6(addr, _) => resolver.servers6.push(*addr),
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn what_can_be_read_counts_and_the_rest_is_ignored() {
        let text = b"# comment \xff\nnameserver 127.0.0.53\nnameserver bogus\nnameserver\n\
            nameserver fe80::1%eth0\n\nnameserver 2001:db8::53 extra\nnonsense 1\noptions ndots:x\n\
            \xfe\xff\n  nameserver 9.9.9.9 ; why not\nsearch a.example b.example.\n";
        let resolver = parse(text);
        assert_eq!(
            resolver.servers4,
            [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(9, 9, 9, 9)]
        );
        assert_eq!(
            resolver.servers6,
            [
                "fe80::1".parse::<Ipv6Addr>().unwrap(),
                "2001:db8::53".parse().unwrap()
            ]
        );
        assert_eq!(resolver.search, ["a.example", "b.example"]);
    }

    #[test]
    fn the_last_of_search_and_domain_wins() {
        assert_eq!(parse(b"search a b\ndomain c\n").search, ["c"]);
        assert_eq!(parse(b"domain c\nsearch a b").search, ["a", "b"]);
        assert!(parse(b"search .\n").search.is_empty());
    }

    #[test]
    fn a_missing_file_says_nothing() {
        assert_eq!(
            read(Path::new("/nonexistent/resolv.conf")),
            Resolver::default()
        );
    }
}
