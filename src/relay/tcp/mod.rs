//! TCP, carried: the guest's segments become writes to a host socket, what the socket holds becomes segments.
//!
//! Guest to host: payloads are not copied. Each flow collects where its payloads lie in the burst, and when the burst is done
//! one write hands them on and one acknowledgement goes back ([`deliver`]), with the host's answer where one came soon before.
//! The window we announce is what the socket can still take; what it refuses nevertheless goes to the pool and is still
//! acknowledged, because we hold it.
//!
//! Host to guest: octets are looked at in the socket (MSG_PEEK) and stay there until the guest acknowledges them ([`pull`]).
//! The socket's peek offset stands behind what was sent; loss moves it back.

mod window;

mod deliver;

mod pull;

mod open;

mod accept;

mod segment;

mod ready;
