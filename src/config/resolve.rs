//! From what was asked and what the host is to what guest and flows are told.

use super::{config::Config, facts::Facts, net::Net};

/// The outcome, with what the caller should be warned of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub net: Net,
    /// Template interfaces per family, by name.
    pub template4: Option<String>,
    pub template6: Option<String>,
    /// One line each, in the order they arose.
    pub warnings: Vec<String>,
}

/// Decides what the guest is told.
///
/// # Errors
/// One line for a person: what was asked cannot be had from this host.
pub fn resolve(_config: &Config, _facts: &Facts) -> Result<Resolved, String> {
    Err("not written yet".to_owned())
}
