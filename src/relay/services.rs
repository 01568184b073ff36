//! Frames that we answer ourselves.

use std::net::IpAddr;

use super::{
    kinds::{is_dhcp, is_dhcpv6, is_neighbour_discovery},
    state::Relay,
};
use crate::{
    config::Net,
    flow,
    link::Outbox,
    net::{Now, Why},
    service::{Answer, Note, arp, dhcp, dhcpv6, ndp},
    wire::frame::{Body, Classified},
};

impl Relay {
    /// Answers a frame that is for a service; `false` if it is for none. `head` is the whole frame.
    ///
    /// # Errors
    /// Why a frame for a service got no answer.
    pub(super) fn serve(
        &mut self,
        frame: &Classified,
        head: &[u8],
        outbox: &mut Outbox,
        now: Now,
    ) -> Result<bool, Why> {
        self.learn(frame, head);
        let Some(answer) = self.ask_service(frame, head)? else {
            return Ok(false);
        };
        match answer {
            Answer::Reply(note) => {
                if let Some(note) = note {
                    self.log_note(note, now);
                }
                if let Body::Udp(ip, _) | Body::Icmp(ip, _) = &frame.body {
                    // Who has no address yet may ask all the same.
                    let _ = self.check_source(ip.src);
                }
                outbox.copy(&self.scratch).map(|()| true)
            }
            Answer::Noted(note) => {
                self.log_note(note, now);
                Err(Why::Unanswered)
            }
            Answer::Silent(why) => Err(why),
        }
    }

    /// Has the service that a frame is for write its answer; `None` if it is for none.
    fn ask_service(&mut self, frame: &Classified, head: &[u8]) -> Result<Option<Answer>, Why> {
        let (net, guest, out) = (&self.net, &self.guest, &mut self.scratch);
        let neighbours = &self.neighbours;
        let answer = match &frame.body {
            Body::Arp if net.v4.is_some() => arp::answer(head, net, guest, neighbours, out),
            Body::Arp => return Err(Why::Disabled),
            Body::Udp(ip, datagram)
                if is_dhcp(ip, datagram) && net.serve.dhcp && may_be_server(net, ip.dst) =>
            {
                dhcp::answer(
                    frame.mac,
                    head.get(datagram.payload.clone()).unwrap_or_default(),
                    net,
                    out,
                )
            }
            Body::Udp(ip, datagram) if is_dhcpv6(ip, datagram) && net.serve.dhcpv6 => {
                let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else {
                    return Ok(None);
                };
                let payload = head.get(datagram.payload.clone()).unwrap_or_default();
                dhcpv6::answer(frame.mac, src, dst, payload, net, out)
            }
            Body::Icmp(ip, message) if is_neighbour_discovery(ip, message) => {
                let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else {
                    return Ok(None);
                };
                if !net.serve.ndp || net.v6.is_none() {
                    return Err(Why::Disabled);
                }
                let octets = head.get(message.octets.clone()).unwrap_or_default();
                ndp::answer(
                    frame.mac, src, dst, ip.ttl, octets, net, guest, neighbours, out,
                )
            }
            Body::Udp(..)
            | Body::Icmp(..)
            | Body::Tcp(..)
            | Body::Igmp(..)
            | Body::Fragment(..) => {
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    /// Learns where the guest is from what it tells its neighbours.
    fn learn(&mut self, frame: &Classified, head: &[u8]) {
        match &frame.body {
            Body::Arp => {
                if let Some(sender) = arp::sender(head) {
                    // An address that cannot be the guest's is a lie, or another's.
                    let _ = self.check_source(sender.into());
                }
            }
            Body::Icmp(ip, message) if is_neighbour_discovery(ip, message) => {
                let octets = head.get(message.octets.clone()).unwrap_or_default();
                match ndp::told(ip.src, octets) {
                    Some(ndp::Told::Has(addr)) => {
                        let _ = self.check_source(addr.into());
                    }
                    Some(ndp::Told::Probes(addr))
                        if flow::check_source(&self.net, addr.into()).is_ok() =>
                    {
                        self.guest.saw_probe(addr);
                    }
                    Some(ndp::Told::Probes(_)) | None => {}
                }
            }
            Body::Icmp(..)
            | Body::Tcp(..)
            | Body::Udp(..)
            | Body::Igmp(..)
            | Body::Fragment(..) => {}
        }
    }

    /// What the guest tells its neighbours, by the queue it was asked by most often, concerns more than the relay that answers.
    pub(super) fn overhear(&mut self, frame: &Classified, head: &[u8], now: Now) {
        if matches!(frame.body, Body::Arp | Body::Icmp(..)) {
            self.guest.saw_frame(frame.mac, frame.body.source(), now);
            self.learn(frame, head);
        }
    }

    /// Logs what a service has to say; the guest decides how often it is asked.
    fn log_note(&mut self, note: Note, now: Now) {
        if let Some(limit) = self.said.get_mut(note.kind()) {
            limit.log(log::Level::Info, now, format_args!("{note}"));
        }
    }

    /// Checks the source of a packet, and learns the guest's address from it.
    ///
    /// # Errors
    /// [`Why::Source`] where no host can have it.
    pub(super) fn check_source(&mut self, src: IpAddr) -> Result<(), Why> {
        flow::check_source(&self.net, src)?;
        let new = self.guest.saw_addr(src);
        self.note_news(new);
        Ok(())
    }

    /// Sends an unsolicited router advertisement, if a guest is there to hear it.
    pub fn advertise(&mut self, outbox: &mut Outbox) {
        let serve = &self.net.serve;
        if !serve.ndp || !serve.ra || self.net.v6.is_none() || !outbox.has_guest() {
            return;
        }
        if !ndp::advertise(&self.net, &mut self.scratch) {
            return;
        }
        if let Err(why) = outbox.copy(&self.scratch) {
            self.count(why);
        }
    }
}

/// Whether a client that we told of a server, or of none yet, asks it at this address: any other has a server of its own.
fn may_be_server(net: &Net, dst: IpAddr) -> bool {
    let IpAddr::V4(dst4) = dst else { return false };
    net.v4.is_some()
        && (dst.is_unspecified() || flow::is_group(net, dst) || flow::means_us4(net, dst4))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    /// A relay agent of the guest's asks a server of its own.
    #[test]
    fn only_requests_to_a_server_on_the_link_are_ours() {
        let net = fixture::relay(16).net().clone();
        let ours = net.v4.as_ref().unwrap().ours;
        for dst in [ours, [255; 4].into(), [192, 0, 2, 255].into()] {
            assert!(may_be_server(&net, dst.into()), "{dst}");
        }
        assert!(!may_be_server(&net, [198, 51, 100, 7].into()));
    }

    /// Regression N02: nobody is there to hear it, and nothing is wrong with that.
    #[test]
    fn without_a_guest_no_advertisement_is_missed() {
        let mut relay = fixture::relay(16);
        relay.advertise(&mut Outbox::new());
        assert_eq!(relay.drops().seen().count(), 0);
    }
}
