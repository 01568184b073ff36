//! ICMP errors of the guest, about packets we sent it. Sockets cannot pass them on: what they mean for a flow is done, and
//! they are counted.

use super::{flow::Flow, state::Relay, whose::key_of_quoted};
use crate::{net::Why, proto::tcp::Phase, wire::quote::Quoted};

/// Whether it says that nothing gets there: any destination unreachable but the one about the size.
const fn is_unreachable(v4: bool, kind: u8, code: u8) -> bool {
    match v4 {
        true => kind == 3 && code != 4,
        false => kind == 1,
    }
}

impl Relay {
    /// Takes an error whose message starts like this.
    ///
    /// Where nobody takes a flow's datagrams, the flow ends. Its peer's next one finds no socket then, and the host's kernel
    /// says so; at a forwarded port it makes a flow anew. A connection is given up only while the guest is asked for it, by an
    /// error about that very SYN, as Linux does it; later errors may pass (RFC 1122, section 4.2.3.9) or be forged (RFC 5927).
    pub(super) fn guest_error(&mut self, v4: bool, kind: u8, code: u8, start: &[u8]) {
        self.count(Why::GuestError);
        let Some(quoted) = Quoted::read(start, v4).filter(|_| is_unreachable(v4, kind, code))
        else {
            return;
        };
        let Some(id) = key_of_quoted(&quoted).and_then(|key| self.find(&key)) else {
            return;
        };
        match self.flows.get(id) {
            Some(Flow::Udp(_)) => self.remove(id),
            Some(Flow::Tcp(flow))
                if matches!(flow.conn.phase(), Phase::SynSent(_)) && flow.syn.seq == quoted.seq =>
            {
                self.abort(id);
            }
            Some(Flow::Tcp(_) | Flow::Echo(_) | Flow::Group(_)) | None => {}
        }
    }
}
