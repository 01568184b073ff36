//! Domain names as DNS writes them (RFC 1035, section 3.1), for the options of DHCP, DHCPv6 and router advertisements.

/// Appends `name`, whole and uncompressed. `false`, and nothing written, if it is no domain name: empty, longer than 253
/// octets, or with a label that is not 1 to 63 octets long. A trailing dot is allowed.
pub fn encode(name: &str, out: &mut Vec<u8>) -> bool {
    let Some(name) = checked(name) else {
        return false;
    };
    for label in name.split('.') {
        push_label(label, out);
    }
    out.push(0);
    true
}

/// Appends all of `names` that are domain names, each shortened by pointers to what was written before it (RFC 1035, section
/// 4.1.4). Pointers count from where this call began to write, as RFC 3397, section 2 wants.
pub fn encode_compressed(names: &[String], out: &mut Vec<u8>) {
    let start = out.len();
    let mut written: Vec<(&str, u16)> = Vec::new();
    for name in names.iter().filter_map(|name| checked(name)) {
        let mut rest = Some(name);
        while let Some(suffix) = rest {
            let known = |(known, _): &&(&str, u16)| known.eq_ignore_ascii_case(suffix);
            if let Some((_, at)) = written.iter().find(known) {
                out.extend((POINTER | at).to_be_bytes());
                break;
            }
            if let Ok(at) = u16::try_from(out.len() - start)
                && at & POINTER == 0
            {
                written.push((suffix, at));
            }
            let (label, tail) = match suffix.split_once('.') {
                Some((label, tail)) => (label, Some(tail)),
                None => (suffix, None),
            };
            push_label(label, out);
            rest = tail;
        }
        if rest.is_none() {
            out.push(0);
        }
    }
}

/// The two high bits that tell a pointer from a label's length.
const POINTER: u16 = 0xc000;

/// The name without its trailing dot, if DNS can carry it.
fn checked(name: &str) -> Option<&str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |label: &str| (1..=63).contains(&label.len());
    (name.len() <= 253 && name.split('.').all(fits)).then_some(name)
}

fn push_label(label: &str, out: &mut Vec<u8>) {
    // At most 63: `checked` saw to it.
    out.push(label.len() as u8);
    out.extend(label.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(name: &str) -> Option<Vec<u8>> {
        let mut out = vec![0xaa];
        encode(name, &mut out).then(|| out.split_off(1))
    }

    /// Reads names back, following pointers, as a resolver would.
    fn decode(data: &[u8]) -> Vec<String> {
        let (mut names, mut at) = (Vec::new(), 0);
        while at < data.len() {
            let (mut labels, mut next, mut here) = (Vec::new(), None, at);
            loop {
                match data[here] {
                    0 => break,
                    pointer if pointer >= 0xc0 => {
                        next = next.or(Some(here + 2));
                        let to = usize::from(pointer & 0x3f) << 8 | usize::from(data[here + 1]);
                        assert!(to < here, "pointers lead backwards");
                        here = to;
                    }
                    len => {
                        let end = here + 1 + usize::from(len);
                        labels.push(String::from_utf8(data[here + 1..end].to_vec()).unwrap());
                        here = end;
                    }
                }
            }
            names.push(labels.join("."));
            at = next.unwrap_or(here + 1);
        }
        names
    }

    #[test]
    fn a_name_is_labels_and_a_root() {
        assert_eq!(
            encoded("a.example").unwrap(),
            b"\x01a\x07example\x00".to_vec()
        );
        assert_eq!(encoded("example."), encoded("example"));
    }

    #[test]
    fn what_dns_cannot_carry_is_refused() {
        let long_label = "x".repeat(64);
        let long_name = "x".repeat(63) + &".yyy".repeat(48);
        for bad in ["", ".", "a..b", ".a", &long_label, &long_name] {
            let mut out = Vec::new();
            assert!(!encode(bad, &mut out), "{bad}");
            assert!(out.is_empty());
        }
        assert!(encoded(&"x".repeat(63)).is_some());
    }

    #[test]
    fn the_example_of_rfc_3397() {
        let names = [
            "eng.apple.com.".to_owned(),
            "marketing.apple.com.".to_owned(),
        ];
        let mut out = vec![0xaa; 7];
        encode_compressed(&names, &mut out);
        assert_eq!(
            out[7..],
            *b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"
        );
    }

    /// D14.
    #[test]
    fn several_names_stay_separate() {
        let names = ["one.test", "", "two.test", "one.test"].map(str::to_owned);
        let mut out = Vec::new();
        encode_compressed(&names, &mut out);
        assert_eq!(decode(&out), ["one.test", "two.test", "one.test"]);
    }

    proptest! {
        #[test]
        fn compressed_names_read_back(names in proptest::collection::vec("[abc]{1,3}(\\.[abc]{1,2}){0,4}", 0..7)) {
            let mut out = Vec::new();
            encode_compressed(&names, &mut out);
            prop_assert_eq!(decode(&out), names);
        }
    }
}
