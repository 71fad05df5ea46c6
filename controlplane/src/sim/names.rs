//! Names in a simulated network: each machine has the server of the DNS overlay beside its node, without its sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::queue::Due;
use super::{LOCAL, Site, World};
use crate::dns::catalog::Update;
use crate::dns::server::{Asker, Output, Server, Transport};

/// Between two looks for an answer.
const LOOK: Duration = Duration::from_millis(1);

impl World {
    /// Asks a machine's server, by UDP or TCP, as a program on it does; nothing when no answer comes within `patience`.
    pub fn ask_name(&mut self, site: Site, query: &[u8], transport: Transport, patience: Duration) -> Option<Vec<u8>> {
        self.next_call += 1;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 53_000));
        let asker = Asker { address, transport, port: self.next_call };
        let now = self.moment(site);
        if let Some(dns) = &mut self.machines[site.0].dns {
            dns.handle_query(query, asker, now);
        }
        self.dns_outputs(site);
        let until = self.net.at + patience;
        loop {
            if let Some(reply) = self.machines[site.0].told_names.remove(&asker) {
                return Some(reply);
            }
            if self.net.at >= until {
                return None;
            }
            self.run(LOOK);
            let now = self.moment(site);
            if let Some(dns) = &mut self.machines[site.0].dns {
                dns.handle_timeout(now);
            }
            self.dns_outputs(site);
        }
    }

    /// A machine's server, to look at.
    pub fn dns(&self, site: Site) -> Option<&Server> {
        self.machines[site.0].dns.as_ref()
    }

    pub(super) fn dns_update(&mut self, site: Site, update: Update) {
        let now = self.moment(site);
        let random = &mut self.random;
        let dns = self.machines[site.0].dns.get_or_insert_with(|| Server::new(random, now.mono));
        dns.handle_update(update, now);
        self.dns_outputs(site);
    }

    fn dns_outputs(&mut self, site: Site) {
        let (soon, life) = (self.net.at + LOCAL, self.machines[site.0].life);
        while let Some(output) = self.machines[site.0].dns.as_mut().and_then(Server::poll_output) {
            match output {
                Output::Reply(asker, bytes) => {
                    self.machines[site.0].told_names.insert(asker, bytes);
                }
                Output::Want(wanted) => self.net.queue.push(soon, Due::Wanted(site, life, wanted)),
            }
        }
    }
}
