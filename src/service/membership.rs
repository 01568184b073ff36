//! What the guest wants of a group: everything, all but some sources, or some sources only (RFC 3376, section 3; RFC 3810,
//! section 4).

use std::net::IpAddr;

use super::multicast::{Kind, Record};
use crate::net::{Now, Span};

/// Sources remembered of a group. Of one whose list is longer, all is wanted, but for as many as there is room for.
const SOURCES: usize = 64;

/// How long a group or a source of one lasts of which no more is said (RFC 3376, section 8.4; RFC 3810, section 9.4).
const PATIENCE: Span = Span::secs(260);

/// One group, and the state of RFC 3376, section 6.2. There is one reporter behind the link, so that what it gives up ends
/// at once; what it only says again (`IsInclude`) never takes anything away, as it may be part of a longer list.
#[derive(Debug)]
pub struct Membership {
    pub group: IpAddr,
    /// Whether `sources` are those that are not wanted, or the only ones that are.
    exclude: bool,
    sources: Vec<(IpAddr, Now)>,
    said: Now,
}

impl Membership {
    /// A group of which nothing is wanted yet.
    pub const fn new(group: IpAddr, now: Now) -> Self {
        Self {
            group,
            exclude: false,
            sources: Vec::new(),
            said: now,
        }
    }

    /// Follows a record about this group.
    pub fn follow(&mut self, record: &Record<'_>, now: Now) {
        self.said = now;
        match record.kind {
            Kind::IsExclude | Kind::ToExclude => self.begin(true),
            Kind::ToInclude if self.exclude || record.is_empty() => self.begin(false),
            // Of a list in several records each adds its own (RFC 3376, section 4.2.16).
            Kind::ToInclude | Kind::IsInclude | Kind::Allow | Kind::Block => {}
        }
        let listed = match record.kind {
            Kind::IsExclude | Kind::ToExclude | Kind::Block => self.exclude,
            Kind::IsInclude | Kind::ToInclude | Kind::Allow => !self.exclude,
        };
        for source in record.sources() {
            self.sources.retain(|(known, _)| *known != source);
            if !listed {
                continue;
            }
            if self.sources.len() < SOURCES {
                self.sources.push((source, now));
            } else if !self.exclude {
                return self.begin(true);
            }
        }
    }

    fn begin(&mut self, exclude: bool) {
        self.exclude = exclude;
        self.sources.clear();
    }

    /// Forgets what the guest has said nothing of for long.
    pub fn forget_old(&mut self, now: Now) {
        let is_old = |said: Now| now.since(said) >= PATIENCE;
        if is_old(self.said) {
            self.begin(false);
        } else if !self.exclude {
            self.sources.retain(|(_, said)| !is_old(*said));
        }
    }

    /// Whether nothing is wanted of the group any more.
    pub const fn is_over(&self) -> bool {
        !self.exclude && self.sources.is_empty()
    }

    /// Whether the guest wants what this source sends.
    pub fn wants(&self, source: IpAddr) -> bool {
        self.exclude != self.sources.iter().any(|(known, _)| *known == source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::multicast;
    use Kind::{Allow, Block, IsExclude, IsInclude, ToExclude, ToInclude};

    const GROUP: [u8; 4] = [232, 1, 1, 1];

    fn at(seconds: u64) -> Now {
        Now::default() + Span::secs(seconds)
    }

    fn source(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn say(group: &mut Membership, kind: Kind, sources: impl IntoIterator<Item = u8>, now: Now) {
        let sources: Vec<_> = sources.into_iter().map(|n| [192, 0, 2, n]).collect();
        let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, 1];
        message.extend([kind as u8 + 1, 0, 0, sources.len() as u8]);
        message.extend(GROUP);
        message.extend(sources.as_flattened());
        multicast::igmp(&message, |record| {
            assert_eq!(record.kind, kind);
            group.follow(&record, now);
        })
        .unwrap();
    }

    fn wanted(group: &Membership) -> Vec<u8> {
        (1..5).filter(|n| group.wants(source(*n))).collect()
    }

    fn group() -> Membership {
        Membership::new(GROUP.into(), at(0))
    }

    #[test]
    fn every_change_of_a_filter_is_followed() {
        let mut group = group();
        assert!(group.is_over());
        for (kind, sources, want) in [
            (Allow, vec![1], vec![1]),
            (Allow, vec![2, 3], vec![1, 2, 3]),
            (Block, vec![1, 4], vec![2, 3]),
            (IsInclude, vec![1], vec![1, 2, 3]),
            (ToInclude, vec![4], vec![1, 2, 3, 4]),
            (ToInclude, vec![], vec![]),
            (ToInclude, vec![4], vec![4]),
            (ToExclude, vec![4], vec![1, 2, 3]),
            (Allow, vec![4], vec![1, 2, 3, 4]),
            (Block, vec![1, 2], vec![3, 4]),
            (IsExclude, vec![3], vec![1, 2, 4]),
            (ToExclude, vec![], vec![1, 2, 3, 4]),
            (ToInclude, vec![1, 2], vec![1, 2]),
            (Block, vec![2], vec![1]),
            (Block, vec![1], vec![]),
        ] {
            say(&mut group, kind, sources.clone(), at(0));
            assert_eq!(wanted(&group), want, "{kind:?} {sources:?}");
        }
        assert!(group.is_over());
    }

    #[test]
    fn a_list_that_is_too_long_lets_everything_through() {
        let mut group = group();
        say(&mut group, Allow, 1..=SOURCES as u8, at(0));
        assert!(!group.wants(source(100)));
        say(&mut group, Allow, [SOURCES as u8 + 1], at(0));
        assert!(group.wants(source(100)) && group.wants(source(1)));
        say(&mut group, Block, 1..=SOURCES as u8 + 1, at(0));
        assert!(!group.wants(source(1)) && group.wants(source(SOURCES as u8 + 1)));
        assert_eq!(group.sources.len(), SOURCES);
        say(&mut group, ToInclude, 1..=200, at(0));
        assert!(group.wants(source(201)) && group.sources.is_empty());
    }

    #[test]
    fn what_is_not_said_again_is_forgotten() {
        let mut group = group();
        say(&mut group, Allow, [1, 2], at(0));
        say(&mut group, IsInclude, [2], at(200));
        group.forget_old(at(300));
        assert_eq!(wanted(&group), [2]);
        say(&mut group, ToExclude, [1], at(300));
        say(&mut group, IsExclude, [1], at(500));
        group.forget_old(at(700));
        assert_eq!(wanted(&group), [2, 3, 4]);
        group.forget_old(at(760));
        assert!(group.is_over());
    }
}
