//! What can be said of a request without knowing the plane's state.

use std::net::SocketAddr;

use weir_abi::map::WORKERS_MAX;

use super::{INNER_MTU_MIN, limit};
use crate::api::message::{Install, RateLimit, Refusal};
use crate::api::{RATE_BURST_MIN, RATE_MIN, SOURCES_MAX};
use crate::config::LANE_PORTS_MAX;
use crate::engine::bundle::{DATAGRAM_LEN_MIN, PayloadLen};
use crate::engine::prefix_set::PrefixSet;

/// The parts of an install that are made while it is checked.
pub(super) struct Checked {
    pub(super) sources: PrefixSet,
    pub(super) payload_len: PayloadLen,
}

/// Checks everything of an install that does not depend on the plane's state.
pub(super) fn check(install: &Install, workers: u8) -> Result<Checked, Refusal> {
    let invalid = |what: String| Err(Refusal::Invalid(what));
    let lanes = install.peer.indices.len();
    if lanes < usize::from(workers) || lanes > usize::from(WORKERS_MAX) {
        return invalid(format!(
            "the peer offers {lanes} lanes; this plane seals {workers}, one for each worker: reserve at least {workers} at the peer"
        ));
    }
    if install.peer.incarnation == install.incarnation {
        return invalid("the peer's incarnation is this plane's own".to_owned());
    }
    check_endpoint(install.endpoint)?;
    if install.peer.lane_ports > LANE_PORTS_MAX {
        return invalid(format!(
            "{} lane ports of the peer: there are at most {LANE_PORTS_MAX}",
            install.peer.lane_ports
        ));
    }
    if install.inner_mtu < INNER_MTU_MIN {
        return invalid(format!("an inner MTU of {} is below {INNER_MTU_MIN}, which IPv6 needs", install.inner_mtu));
    }
    let Some(payload_len) = PayloadLen::new(install.datagram_len_max) else {
        return invalid(format!("datagrams of {} bytes are below {DATAGRAM_LEN_MIN}", install.datagram_len_max));
    };
    if let Some(rate) = install.rate
        && (rate.bytes_per_s < RATE_MIN || rate.burst < RATE_BURST_MIN)
    {
        let RateLimit { bytes_per_s, burst } = rate;
        return invalid(format!(
            "a rate of {bytes_per_s} bytes per second with a burst of {burst}: at least {RATE_MIN} and {RATE_BURST_MIN} are needed"
        ));
    }
    if install.sources.is_empty() {
        return invalid("a peer without source prefixes could send nothing".to_owned());
    }
    let sources = PrefixSet::new(&install.sources).map_err(|_| limit("source prefixes of a peer", SOURCES_MAX))?;
    Ok(Checked { sources, payload_len })
}

/// Refuses what no datagram can be sent to.
pub(super) fn check_endpoint(endpoint: SocketAddr) -> Result<(), Refusal> {
    let ip = endpoint.ip();
    if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(Refusal::Invalid(format!("{endpoint} is no address to send to")));
    }
    Ok(())
}
