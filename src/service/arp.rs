//! ARP (RFC 826): every IPv4 address is reached through us, so we answer for all of them but the guest's own: with the link
//! address of a neighbour of the host where that is known, else with ours.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::note::Answer;
use crate::{
    config::{Net, Net4},
    flow::{Guest, Neighbours, means_us4},
    net::{Class, Mac, Why, class},
    wire::build::{ETHERNET_LEN, Ends, ethernet},
};

/// Answers an ARP frame with the MAC address where the target is. Silent about the guest's addresses, assigned or seen, lest
/// the guest takes them for taken (RFC 5227, section 2.1), and on announcements. One that probes may have any address but
/// ours and those that somebody is known to have.
pub fn answer(
    frame: &[u8],
    net: &Net,
    guest: &Guest,
    neighbours: &Neighbours,
    out: &mut Vec<u8>,
) -> Answer {
    let Some(net4) = &net.v4 else {
        return Answer::Silent(Why::Disabled);
    };
    let Some(request) = parse(frame) else {
        return Answer::Silent(Why::Malformed);
    };
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: client,
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    } = request
    else {
        return Answer::Silent(Why::Unanswered);
    };
    if !client.is_unicast() || !can_be_host(sender) && !sender.is_unspecified() {
        return Answer::Silent(Why::Source);
    }
    if !can_be_host(target) {
        return Answer::Silent(Why::Destination);
    }
    let known = neighbours.get(target.into());
    let free = sender.is_unspecified() && known.is_none() && !means_us4(net, target);
    let of_guest =
        target == net4.addr || neighbours.leave_to(guest, target.into(), net4.ours.into());
    if target == sender || of_guest || free {
        return Answer::Silent(Why::Unanswered);
    }
    let mac = known.map_or(net.mac, |known| known.mac);
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: target,
        target_hardware_addr: client,
        target_protocol_addr: sender,
    };
    write(out, mac, Mac(client.0), &reply);
    Answer::Reply(None)
}

/// The address a frame's sender says it has, if any.
pub fn sender(frame: &[u8]) -> Option<Ipv4Addr> {
    let ArpRepr::EthernetIpv4 {
        source_protocol_addr,
        ..
    } = parse(frame)?
    else {
        return None;
    };
    can_be_host(source_protocol_addr).then_some(source_protocol_addr)
}

/// Writes the announcement that `addr` is at `mac` now (RFC 5227, section 3).
pub fn announce(addr: Ipv4Addr, mac: Mac, out: &mut Vec<u8>) {
    let announcement = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: addr,
        target_hardware_addr: EthernetAddress(Mac::ZERO.0),
        target_protocol_addr: addr,
    };
    write(out, mac, Mac::BROADCAST, &announcement);
}

/// Writes a broadcast that asks who has `target`, the guest's address as far as we know.
pub fn request(net: &Net4, ours: Mac, target: Ipv4Addr, out: &mut Vec<u8>) {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(ours.0),
        source_protocol_addr: net.ours,
        target_hardware_addr: EthernetAddress(Mac::ZERO.0),
        target_protocol_addr: target,
    };
    write(out, ours, Mac::BROADCAST, &request);
}

/// Reads a frame that is ARP for IPv4 over Ethernet, by its types and lengths.
fn parse(frame: &[u8]) -> Option<ArpRepr> {
    let packet = ArpPacket::new_checked(frame.get(ETHERNET_LEN..)?).ok()?;
    ArpRepr::parse(&packet).ok()
}

fn can_be_host(addr: Ipv4Addr) -> bool {
    matches!(class(IpAddr::V4(addr)), Class::Global | Class::LinkLocal)
}

fn write(out: &mut Vec<u8>, src: Mac, dst: Mac, arp: &ArpRepr) {
    ethernet(out, Ends { src, dst }, 0x0806, |out| {
        let mut packet = [0; 28];
        arp.emit(&mut ArpPacket::new_unchecked(&mut packet[..]));
        out.extend(packet);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Neighbour;
    use crate::service::fixture::{GUEST, GUEST_MAC, OUR_MAC, ROUTER, arp_request, net};

    const OTHER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

    fn ask(frame: &[u8], guest: &Guest) -> (Answer, Vec<u8>) {
        let mut out = vec![0xee; 100];
        let answer = answer(frame, &net(), guest, &Neighbours::default(), &mut out);
        (answer, out)
    }

    fn guest() -> Guest {
        Guest::new(Some(GUEST), None)
    }

    /// The request for `target`, with another sender.
    fn from(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = arp_request(target);
        frame[28..32].copy_from_slice(&sender.octets());
        frame
    }

    /// N13 too: the frame is padded.
    #[test]
    fn any_address_is_at_our_mac() {
        for target in [ROUTER, OTHER, Ipv4Addr::new(169, 254, 1, 1)] {
            let (answer, out) = ask(&arp_request(target), &guest());
            assert_eq!(answer, Answer::Reply(None));
            assert_eq!(out.len(), 60);
            assert_eq!(out[..6], GUEST_MAC.0);
            assert_eq!(out[6..12], OUR_MAC.0);
            assert_eq!(out[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
            assert_eq!(out[22..28], OUR_MAC.0);
            assert_eq!(out[28..32], target.octets());
            assert_eq!(out[32..38], GUEST_MAC.0);
            assert_eq!(out[38..42], GUEST.octets());
            assert_eq!(out[42..], [0; 18]);
        }
    }

    /// One neighbour of the host's.
    fn neighbours(addr: Ipv4Addr, mac: Mac) -> Neighbours {
        let mut neighbours = Neighbours::default();
        let neighbour = Neighbour {
            interface: 2,
            addr: addr.into(),
            mac: Some(mac),
            router: false,
        };
        neighbours.note(&net(), &neighbour);
        neighbours
    }

    /// N12.
    #[test]
    fn a_known_neighbour_is_at_its_own_mac_and_its_move_is_announced() {
        let (addr, mac) = (Ipv4Addr::new(192, 0, 2, 7), Mac([2, 0, 0, 0, 0, 7]));
        let (net, neighbours) = (net(), neighbours(addr, mac));
        let mut out = Vec::new();
        let reply = answer(&arp_request(addr), &net, &guest(), &neighbours, &mut out);
        assert_eq!(reply, Answer::Reply(None));
        assert_eq!((&out[6..12], &out[22..28]), (&mac.0[..], &mac.0[..]));
        announce(addr, mac, &mut out);
        assert_eq!(out.len(), 60);
        assert_eq!(out[..12], [[0xff; 6], mac.0].concat());
        assert_eq!(out[20..22], [0, 1]);
        assert_eq!(out[22..32], [&mac.0[..], &addr.octets()].concat());
        assert_eq!(out[32..42], [&[0; 6][..], &addr.octets()].concat());
    }

    /// N14.
    #[test]
    fn a_probe_for_the_assigned_address_meets_silence() {
        let silent = Answer::Silent(Why::Unanswered);
        let unseen = Guest::new(None, None);
        assert_eq!(ask(&from(Ipv4Addr::UNSPECIFIED, GUEST), &unseen).0, silent);
        assert_eq!(ask(&from(ROUTER, GUEST), &unseen).0, silent);
        assert_eq!(
            ask(&from(Ipv4Addr::UNSPECIFIED, ROUTER), &unseen).0,
            Answer::Reply(None)
        );
    }

    #[test]
    fn an_address_the_guest_has_shown_is_its_own() {
        let mut guest = guest();
        guest.saw_addr(OTHER.into());
        assert_eq!(
            ask(&arp_request(OTHER), &guest).0,
            Answer::Silent(Why::Unanswered)
        );
        assert_eq!(
            ask(&arp_request(GUEST), &guest).0,
            Answer::Silent(Why::Unanswered)
        );
    }

    /// N15.
    #[test]
    fn an_announcement_meets_silence() {
        assert_eq!(
            ask(&from(OTHER, OTHER), &guest()).0,
            Answer::Silent(Why::Unanswered)
        );
    }

    #[test]
    fn only_requests_for_ipv4_over_ethernet_are_answered() {
        for (at, octet) in [(15, 6), (16, 9), (18, 5), (19, 6)] {
            let mut frame = arp_request(ROUTER);
            frame[at] = octet;
            assert_eq!(
                ask(&frame, &guest()).0,
                Answer::Silent(Why::Malformed),
                "octet {at}"
            );
        }
        let mut reply = arp_request(ROUTER);
        reply[21] = 2;
        assert_eq!(ask(&reply, &guest()).0, Answer::Silent(Why::Unanswered));
        let frame = arp_request(ROUTER);
        for len in 0..frame.len() {
            assert_eq!(
                ask(&frame[..len], &guest()).0,
                Answer::Silent(Why::Malformed)
            );
        }
    }

    #[test]
    fn addresses_no_host_has_are_not_answered_for() {
        for target in [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::LOCALHOST,
            [224, 0, 0, 1].into(),
        ] {
            assert_eq!(
                ask(&arp_request(target), &guest()).0,
                Answer::Silent(Why::Destination)
            );
        }
        assert_eq!(
            ask(&from(Ipv4Addr::LOCALHOST, ROUTER), &guest()).0,
            Answer::Silent(Why::Source)
        );
        let mut frame = arp_request(ROUTER);
        frame[22] |= 1;
        assert_eq!(ask(&frame, &guest()).0, Answer::Silent(Why::Source));
    }

    #[test]
    fn without_ipv4_nothing_is_said() {
        let mut net = net();
        net.v4 = None;
        let (guest, nobody) = (guest(), Neighbours::default());
        let answer = answer(&arp_request(ROUTER), &net, &guest, &nobody, &mut Vec::new());
        assert_eq!(answer, Answer::Silent(Why::Disabled));
    }

    #[test]
    fn our_own_request_asks_everybody() {
        let mut out = vec![1; 7];
        request(net().v4.as_ref().unwrap(), OUR_MAC, GUEST, &mut out);
        assert_eq!(out.len(), 60);
        assert_eq!(out[..6], [0xff; 6]);
        assert_eq!(out[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(out[22..28], OUR_MAC.0);
        assert_eq!(out[28..32], ROUTER.octets());
        assert_eq!(out[32..38], [0; 6]);
        assert_eq!(out[38..42], GUEST.octets());
    }

    /// A static address, or one of those that clients choose without DHCP (RFC 3927).
    #[test]
    fn a_probe_for_an_address_nobody_is_known_to_have_meets_silence() {
        for target in [OTHER, Ipv4Addr::new(169, 254, 7, 7)] {
            let probe = from(Ipv4Addr::UNSPECIFIED, target);
            assert_eq!(ask(&probe, &guest()).0, Answer::Silent(Why::Unanswered));
        }
        let probe = from(Ipv4Addr::UNSPECIFIED, ROUTER);
        assert_eq!(ask(&probe, &guest()).0, Answer::Reply(None));
        let addr = Ipv4Addr::new(192, 0, 2, 7);
        let (net, neighbours) = (net(), neighbours(addr, Mac([2, 0, 0, 0, 0, 7])));
        let probe = from(Ipv4Addr::UNSPECIFIED, addr);
        let reply = answer(&probe, &net, &guest(), &neighbours, &mut Vec::new());
        assert_eq!(reply, Answer::Reply(None));
    }

    #[test]
    fn each_address_the_guest_was_heard_at_is_its_own() {
        let mut guest = guest();
        guest.saw_mac(GUEST_MAC);
        for addr in [OTHER, ROUTER, GUEST] {
            guest.saw_addr(addr.into());
        }
        let answer = |target| ask(&arp_request(target), &guest).0;
        assert_eq!(answer(OTHER), Answer::Silent(Why::Unanswered));
        // Whatever it said once, it means us.
        assert_eq!(answer(ROUTER), Answer::Reply(None));
        let (net, neighbours) = (net(), neighbours(OTHER, Mac([2, 0, 0, 0, 0, 7])));
        let request = arp_request(OTHER);
        let reply = super::answer(&request, &net, &guest, &neighbours, &mut Vec::new());
        assert_eq!(reply, Answer::Reply(None), "somebody else has it now");
    }
}
