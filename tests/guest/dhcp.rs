//! DHCP messages by hand (RFC 2131, RFC 2132).
