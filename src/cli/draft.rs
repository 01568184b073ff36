//! The configuration while the command line is read. Options are applied in their order, so the last one wins by itself;
//! what depends on several waits for the end.

use std::{net::IpAddr, ops::RangeInclusive};

use super::values;
use crate::{
    config::{
        Config, DnsServers, Forwards, LinkChoice, MOST_DOMAINS, MapChoice, RepairPath, SearchList,
        VhostFeatures,
    },
    host::ephemeral_ports,
    net::Protocol,
};

#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) show: Option<Show>,
    /// `--netmask`, and whether an address brought its own prefix length.
    pub(super) netmask: Option<u8>,
    own_prefix: [bool; 2],
    pub(super) no_map_gw: bool,
    warnings: Vec<String>,
    forwards: Forwards,
    /// The host's ephemeral ports, once needed.
    ephemeral: Option<RangeInclusive<u16>>,
}

/// What is wanted instead of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Help,
    Version,
    Capabilities,
}

impl Draft {
    /// The configuration with its warnings, once all options are applied.
    ///
    /// # Errors
    /// One line for a person: two options contradict each other.
    pub(super) fn finish(mut self) -> Result<(Config, Vec<String>), String> {
        if let Some(prefix) = self.netmask {
            if self.own_prefix.contains(&true) {
                return Err("Redundant prefix length specification".to_owned());
            }
            self.config.prefix4 = Some(prefix);
        }
        self.config.prefix4 = self.config.prefix4.filter(|&prefix| prefix > 0);
        if matches!(self.config.link, LinkChoice::Fd(_)) {
            self.config.one_off = true;
        }
        if self.no_map_gw {
            off_by_default(&mut self.config.map_host_loopback4);
            off_by_default(&mut self.config.map_host_loopback6);
        }
        self.vhost_user_only()?;
        if self.config.pcap.is_some() && self.config.queues.is_some_and(|queues| queues > 1) {
            self.warn("--pcap captures one queue pair: --queues has no effect");
        }
        let config = &mut self.config;
        let (rules, warnings) = self.forwards.finish(config.enabled())?;
        config.forwards = rules;
        self.warnings.extend(warnings);
        Ok((self.config, self.warnings))
    }

    fn vhost_user_only(&self) -> Result<(), String> {
        let config = &self.config;
        let asked = [
            (
                matches!(config.repair_path, RepairPath::At(_)),
                "--repair-path",
            ),
            (config.queues.is_some(), "--queues"),
            (config.migrate_exit, "--migrate-exit"),
            (config.migrate_no_linger, "--migrate-no-linger"),
            (
                config.vhost_features != VhostFeatures::default(),
                "--vhost-features",
            ),
        ];
        match asked.iter().find(|&&(asked, _)| asked) {
            Some((_, option)) if !config.vhost_user => {
                Err(format!("{option} is for vhost-user mode only"))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a warning, once.
    pub(super) fn warn(&mut self, warning: &str) {
        if !self.warnings.iter().any(|known| known == warning) {
            self.warnings.push(warning.to_owned());
        }
    }

    pub(super) fn forward(&mut self, protocol: Protocol, text: &str) -> Result<(), String> {
        let ephemeral = self.ephemeral.get_or_insert_with(ephemeral_ports);
        self.forwards.add(protocol, text, ephemeral)
    }

    pub(super) fn address(&mut self, text: &str) -> Result<(), String> {
        let (addr, prefix) = values::guest_address(text)?;
        let config = &mut self.config;
        match addr {
            IpAddr::V4(v4) => (config.addr4, config.prefix4) = (Some(v4), prefix),
            IpAddr::V6(v6) => config.addr6 = Some(v6),
        }
        self.own_prefix[usize::from(addr.is_ipv6())] = prefix.is_some();
        Ok(())
    }

    pub(super) fn dns(&mut self, text: &str) -> Result<(), String> {
        let servers = &mut self.config.dns_servers;
        if matches!(text, "" | "none") {
            *servers = DnsServers::Given(Vec::new());
            return Ok(());
        }
        let server = values::dns_server(text)?;
        match servers {
            DnsServers::Given(list) => list.push(server),
            DnsServers::FromHost => *servers = DnsServers::Given(vec![server]),
        }
        Ok(())
    }

    pub(super) fn search(&mut self, text: &str) -> Result<(), String> {
        let mut domains = match &mut self.config.search {
            SearchList::Given(domains) => std::mem::take(domains),
            SearchList::FromHost => Vec::new(),
        };
        if matches!(text, "" | "none") {
            domains.clear();
        } else {
            for domain in text.split_whitespace() {
                if domains.len() == MOST_DOMAINS {
                    return Err(format!("Cannot use DNS search domain {domain}"));
                }
                domains.push(values::search_domain(domain)?);
            }
        }
        self.config.search = SearchList::Given(domains);
        Ok(())
    }

    pub(super) fn map_host_loopback(&mut self, text: &str) -> Result<(), String> {
        let config = &mut self.config;
        if text == "none" {
            config.map_host_loopback4 = MapChoice::Off;
            config.map_host_loopback6 = MapChoice::Off;
            return Ok(());
        }
        match values::remapped(text)? {
            IpAddr::V4(v4) => config.map_host_loopback4 = MapChoice::To(v4),
            IpAddr::V6(v6) => config.map_host_loopback6 = MapChoice::To(v6),
        }
        Ok(())
    }

    pub(super) fn map_guest_addr(&mut self, text: &str) -> Result<(), String> {
        let config = &mut self.config;
        if text == "none" {
            (config.map_guest_addr4, config.map_guest_addr6) = (None, None);
            return Ok(());
        }
        match values::remapped(text)? {
            IpAddr::V4(v4) => config.map_guest_addr4 = Some(v4),
            IpAddr::V6(v6) => config.map_guest_addr6 = Some(v6),
        }
        Ok(())
    }
}

fn off_by_default<A>(choice: &mut MapChoice<A>) {
    if matches!(choice, MapChoice::Default) {
        *choice = MapChoice::Off;
    }
}
