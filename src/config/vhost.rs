//! What a vhost-user back end offers to the guest's driver.

/// Bits of a virtio-net device's features (virtio 1.2, sections 5.1.3 and 6), and of vhost (LOG_ALL, PROTOCOL_FEATURES).
pub mod bits {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const MQ: u64 = 1 << 22;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

use bits::{
    CSUM, EVENT_IDX, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_ECN,
    HOST_TSO4, HOST_TSO6, HOST_USO, INDIRECT_DESC, LOG_ALL, MRG_RXBUF, PROTOCOL_FEATURES,
    VERSION_1,
};

/// Names of those that can be left out.
const NAMES: [(&str, u64); 13] = [
    ("csum", CSUM),
    ("event-idx", EVENT_IDX),
    ("guest-csum", GUEST_CSUM),
    ("guest-tso4", GUEST_TSO4),
    ("guest-tso6", GUEST_TSO6),
    ("guest-uso4", GUEST_USO4),
    ("guest-uso6", GUEST_USO6),
    ("host-ecn", HOST_ECN),
    ("host-tso4", HOST_TSO4),
    ("host-tso6", HOST_TSO6),
    ("host-uso", HOST_USO),
    ("indirect-desc", INDIRECT_DESC),
    ("mrg-rxbuf", MRG_RXBUF),
];

/// Features no device may do without here.
const ALWAYS: u64 = VERSION_1 | LOG_ALL | PROTOCOL_FEATURES;

/// The features offered to the guest's driver, which takes those it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhostFeatures(u64);

impl Default for VhostFeatures {
    fn default() -> Self {
        Self::offering(NAMES.iter().fold(0, |all, (_, bit)| all | bit))
    }
}

impl VhostFeatures {
    /// Reads a list as the command line has it: `all`, `none`, the names of those to be offered, or those not to be, each
    /// behind a `~`.
    ///
    /// # Errors
    /// The word that is no feature, or that stands beside words of another kind.
    pub fn parse(list: &str) -> Result<Self, &str> {
        let (mut given, mut left_out, mut chosen) = (Self::default().0 & !ALWAYS, false, 0);
        match list {
            "all" => return Ok(Self::default()),
            "none" => return Ok(Self::offering(0)),
            _ => {}
        }
        for word in list.split(',') {
            let name = word.strip_prefix('~');
            let bit = NAMES
                .iter()
                .find(|(known, _)| *known == name.unwrap_or(word))
                .map(|(_, bit)| bit)
                .ok_or(word)?;
            if name.is_some() {
                left_out = true;
                given &= !bit;
            } else {
                chosen |= bit;
            }
            if left_out && chosen != 0 {
                return Err(word);
            }
        }
        Ok(Self::offering(if left_out { given } else { chosen }))
    }

    /// Segments that are not cut have no checksums either: without one there is not the other (virtio 1.2, section 5.1.3.1).
    const fn offering(mut bits: u64) -> Self {
        if bits & CSUM == 0 {
            bits &= !(HOST_TSO4 | HOST_TSO6 | HOST_USO);
        }
        if bits & (HOST_TSO4 | HOST_TSO6) == 0 {
            bits &= !HOST_ECN;
        }
        if bits & GUEST_CSUM == 0 {
            bits &= !(GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6);
        }
        Self(bits | ALWAYS)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_or_left_out() {
        let all = VhostFeatures::default().bits();
        let parse = |list| VhostFeatures::parse(list).map(VhostFeatures::bits);
        assert_eq!(parse("all"), Ok(all));
        assert_eq!(parse("none"), Ok(ALWAYS));
        assert_eq!(
            parse("~mrg-rxbuf,~event-idx"),
            Ok(all & !MRG_RXBUF & !EVENT_IDX)
        );
        assert_eq!(parse("csum,host-tso4"), Ok(ALWAYS | CSUM | HOST_TSO4));
        for bad in ["", "tso", "csum,", "~~csum", "Csum"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("csum,~mrg-rxbuf"), Err("~mrg-rxbuf"));
    }

    #[test]
    fn nothing_is_offered_without_what_it_builds_upon() {
        let parse = |list| VhostFeatures::parse(list).unwrap().bits();
        assert_eq!(parse("host-tso4,host-ecn,guest-tso6"), ALWAYS);
        let guests = GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
        assert_eq!(parse("~guest-csum") & guests, 0);
        let hosts = HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
        assert_eq!(parse("~csum") & hosts, 0);
    }
}
