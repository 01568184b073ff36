//! ICMP errors of the guest, about packets we sent it. Sockets cannot pass them on: what they mean for a flow is done, and
//! they are counted.

use super::{flow::Flow, state::Relay, whose::key_of_quoted};
use crate::{
    flow::Id,
    net::{Seq, Why},
    proto::tcp::Phase,
    wire::{
        build::{TCP_LEN, ip_len},
        quote::Quoted,
    },
};

/// The least path MTUs that a guest's routers are believed (RFC 791, section 3.2, of what every host takes; RFC 8200, section 5).
const LEAST4: u16 = 576;
const LEAST6: u16 = 1280;

/// Whether it says that nothing gets there: any destination unreachable but the one about the size.
const fn is_unreachable(v4: bool, kind: u8, code: u8) -> bool {
    match v4 {
        true => kind == 3 && code != 4,
        false => kind == 1,
    }
}

/// The MTU of the link a packet was too large for, if the error is of that kind.
fn narrow_link(v4: bool, kind: u8, code: u8, start: &[u8]) -> Option<u16> {
    let &[_, _, _, _, high, low, next_high, next_low] = start.first_chunk()?;
    match (v4, kind, code) {
        // Routers from before RFC 1191 say nothing.
        (true, 3, 4) => Some(u16::from_be_bytes([next_high, next_low]).max(LEAST4)),
        (false, 2, _) => {
            let mtu = u32::from_be_bytes([high, low, next_high, next_low]);
            Some(u16::try_from(mtu).unwrap_or(u16::MAX).max(LEAST6))
        }
        _ => None,
    }
}

impl Relay {
    /// Takes an error whose message starts like this.
    ///
    /// Where nobody takes a flow's datagrams, the flow ends. Its peer's next one finds no socket then, and the host's kernel
    /// says so; at a forwarded port it makes a flow anew. A connection is given up only while the guest is asked for it, by an
    /// error about that very SYN, as Linux does it; later errors may pass (RFC 1122, section 4.2.3.9) or be forged (RFC 5927).
    /// A guest that is a router may have a narrower link behind it, which connections have to know of.
    pub(super) fn guest_error(&mut self, v4: bool, (kind, code): (u8, u8), start: &[u8]) {
        self.count(Why::GuestError);
        let Some(quoted) = Quoted::read(start, v4) else {
            return;
        };
        let Some(id) = key_of_quoted(&quoted).and_then(|key| self.find(&key)) else {
            return;
        };
        if let Some(mtu) = narrow_link(v4, kind, code, start) {
            return self.narrow(id, quoted.seq, mtu - (ip_len(v4) + TCP_LEN) as u16);
        }
        if !is_unreachable(v4, kind, code) {
            return;
        }
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

    /// Segments of more than so many octets do not get through.
    fn narrow(&mut self, id: Id, seq: Seq, octets: u16) {
        let Some(Flow::Tcp(flow)) = self.flows.get_mut(id) else {
            return;
        };
        let disorder = self.disorders.get_mut(flow.state.disorder);
        if flow.conn.narrow(seq, octets, disorder) {
            // What comes with it is handed on before it is acknowledged.
            flow.state.pull = true;
            self.touch(id);
            self.seek(id);
        }
    }
}
