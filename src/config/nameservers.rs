//! Which nameservers the guest is told, and which address stands for one it cannot reach.

/// The outcome for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nameservers<A> {
    /// What the guest is told.
    pub(super) advertised: Vec<A>,
    /// The guest-side address whose queries go to `host`.
    pub(super) forward: Option<A>,
    pub(super) host: Option<A>,
}

/// What was asked for one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a, A> {
    /// `--dns`; replaces the host's list and is passed on as it is.
    pub(super) given: Option<&'a [A]>,
    /// `--dns-forward` and `--dns-host`.
    pub(super) forward: Option<A>,
    pub(super) host: Option<A>,
    /// The address that stands for the host's loopback.
    pub(super) mapped: Option<A>,
}

/// How many are advertised; resolvers use no more (resolv.conf(5), MAXNS).
const MOST: usize = 3;

impl<A: Copy + PartialEq> Nameservers<A> {
    /// `servers` are the host's. One that is `hidden` from the guest (a loopback address, or one that means something else
    /// on the guest's side) is told as the forwarding address or, failing that, as the address mapped to the host, which
    /// then forwards queries too.
    pub(super) fn decide(asked: Asked<'_, A>, servers: &[A], hidden: impl Fn(A) -> bool) -> Self {
        let stand_in = asked.forward.or(asked.mapped);
        let host = asked.host.or_else(|| servers.first().copied());
        let mut advertised = Vec::new();
        let mut forward = asked.forward;
        if let Some(given) = asked.given {
            advertised.extend_from_slice(given);
        } else {
            for &server in servers {
                if !hidden(server) {
                    push_new(&mut advertised, server);
                } else if let Some(address) = stand_in {
                    push_new(&mut advertised, address);
                    forward = Some(address);
                }
            }
            if let (true, Some(address), Some(_)) = (advertised.is_empty(), asked.forward, host) {
                advertised.push(address);
            }
        }
        advertised.truncate(MOST);
        Self {
            advertised,
            forward,
            host,
        }
    }
}

fn push_new<A: PartialEq>(list: &mut Vec<A>, item: A) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Asked<'_, u8> = Asked {
        given: None,
        forward: None,
        host: None,
        mapped: None,
    };

    fn odd(server: u8) -> bool {
        server % 2 == 1
    }

    fn told(advertised: &[u8], forward: Option<u8>, host: Option<u8>) -> Nameservers<u8> {
        Nameservers {
            advertised: advertised.to_vec(),
            forward,
            host,
        }
    }

    #[test]
    fn reachable_servers_are_told_as_they_are_three_at_most() {
        let asked = Asked {
            forward: Some(100),
            mapped: Some(101),
            ..NOTHING
        };
        assert_eq!(
            Nameservers::decide(asked, &[2, 4, 4, 6, 8], odd),
            told(&[2, 4, 6], Some(100), Some(2))
        );
    }

    /// Regressions C11, C46 and C47.
    #[test]
    fn a_hidden_server_is_told_by_its_stand_in() {
        let mapped = Asked {
            mapped: Some(101),
            ..NOTHING
        };
        assert_eq!(
            Nameservers::decide(mapped, &[1, 3, 2], odd),
            told(&[101, 2], Some(101), Some(1))
        );
        let forwarded = Asked {
            forward: Some(100),
            host: Some(9),
            ..mapped
        };
        assert_eq!(
            Nameservers::decide(forwarded, &[1], odd),
            told(&[100], Some(100), Some(9))
        );
        assert_eq!(
            Nameservers::decide(NOTHING, &[1], odd),
            told(&[], None, Some(1))
        );
    }

    #[test]
    fn a_forwarding_address_is_told_where_there_is_no_other() {
        let asked = Asked {
            forward: Some(100),
            host: Some(2),
            ..NOTHING
        };
        assert_eq!(
            Nameservers::decide(asked, &[], odd),
            told(&[100], Some(100), Some(2))
        );
    }

    /// Regression C20.
    #[test]
    fn given_servers_are_not_remapped() {
        let asked = Asked {
            given: Some(&[1, 3]),
            mapped: Some(101),
            ..NOTHING
        };
        assert_eq!(
            Nameservers::decide(asked, &[2], odd),
            told(&[1, 3], None, Some(2))
        );
    }
}
