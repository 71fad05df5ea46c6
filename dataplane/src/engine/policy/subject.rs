//! What a packet is to the policy: the beginning of something, a part of it, an answer, or a word about it.

use std::net::IpAddr;

use super::flows::Kind;
use super::rules::Question;
use crate::engine::inner::{Inner, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Quote};

// Flags of the TCP header's fourteenth byte (RFC 9293 §3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Where that byte is.
const FLAGS_AT: usize = 13;
/// Echo request and reply (RFC 792; RFC 4443 §4).
const ECHO: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// What is asked for when a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    /// It is of a flow, or begins one.
    Part(Part),
    /// Not the first fragment of a packet: without ports.
    Later {
        /// Names the packet.
        id: u32,
        /// It would lie over what the first fragment was judged by.
        overlays: bool,
    },
    /// An ICMP error about this.
    Error(Quote<'a>),
    /// It stands for itself: no ports that matter, nothing to follow.
    Alone,
    /// Its header is cut short of what tells it apart.
    Cut,
}

/// A packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// Ports, or what tells flows apart in their place.
    pub(super) ports: [u16; 2],
    /// It asks for a flow of its own, so no flow the other way lets it pass: TCP's SYN, an echo request.
    pub(super) begins: bool,
    /// It is worth nothing without a question: an echo reply.
    pub(super) answers: bool,
    /// A flow is remembered when the rules let it pass.
    pub(super) opens: bool,
    pub(super) fin: bool,
    pub(super) reset: bool,
}

impl Part {
    const fn new(kind: Kind, ports: [u16; 2]) -> Self {
        Self { kind, ports, begins: false, answers: false, opens: true, fin: false, reset: false }
    }

    fn tcp(upper: &[u8]) -> Option<Self> {
        let flags = *upper.get(FLAGS_AT)?;
        let is = |flag: u8| flags & flag != 0;
        Some(Self {
            begins: is(SYN) && !is(ACK),
            // Neither an answer to a SYN nor a reset makes something of nothing.
            opens: !is(RST) && (!is(SYN) || !is(ACK)),
            fin: is(FIN),
            reset: is(RST),
            ..Self::new(Kind::Tcp, ports(upper)?)
        })
    }

    /// `echo` are the types of request and reply.
    fn echo(upper: &[u8], echo: [u8; 2]) -> Option<Self> {
        let &[icmp_type, _, _, _, i0, i1] = upper.first_chunk()?;
        let id = u16::from_be_bytes([i0, i1]);
        let part = Self::new(Kind::Brief, [id, id]);
        Some(match icmp_type {
            request if request == echo[0] => Self { begins: true, ..part },
            reply if reply == echo[1] => Self { answers: true, opens: false, ..part },
            _ => return None,
        })
    }

    /// Of the upper-layer header of a packet, as far as it is there.
    fn read(protocol: u8, is_ipv4: bool, upper: &[u8]) -> Subject<'static> {
        let part = match protocol {
            PROTOCOL_TCP => Self::tcp(upper),
            PROTOCOL_UDP => ports(upper).map(|ports| Self::new(Kind::Udp, ports)),
            PROTOCOL_ICMP if is_ipv4 => return icmp(upper, ECHO),
            PROTOCOL_ICMPV6 if !is_ipv4 => return icmp(upper, ECHO_V6),
            _ => Some(Self::new(Kind::Other, [0, 0])),
        };
        part.map_or(Subject::Cut, Subject::Part)
    }
}

/// ICMP that is no error.
fn icmp(upper: &[u8], echo: [u8; 2]) -> Subject<'static> {
    match upper.first() {
        Some(icmp_type) if echo.contains(icmp_type) => Part::echo(upper, echo).map_or(Subject::Cut, Subject::Part),
        Some(_) => Subject::Alone,
        None => Subject::Cut,
    }
}

fn ports(upper: &[u8]) -> Option<[u16; 2]> {
    let &[s0, s1, d0, d1] = upper.first_chunk()?;
    Some([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
}

impl<'a> Subject<'a> {
    /// What the packet is that `inner` was parsed from.
    pub(super) fn read(inner: &Inner, packet: &'a [u8]) -> Self {
        let Some(upper) = inner.l4_offset.and_then(|at| packet.get(usize::from(at)..)) else {
            return match inner.fragment {
                // RFC 3128: a fragment at the eighth byte can change the flags by which the first one was judged. Ports lie before it.
                Some(fragment) => Self::Later {
                    id: fragment.id,
                    overlays: inner.protocol == PROTOCOL_TCP && usize::from(fragment.offset) <= FLAGS_AT,
                },
                None => Self::Cut,
            };
        };
        match inner.quote(packet) {
            Some(quote) => Self::Error(quote),
            None => Part::read(inner.protocol, inner.source.is_ipv4(), upper),
        }
    }
}

/// Both ends and the protocol of the flow that a quoted packet is of, if enough of it is quoted to tell.
pub(super) fn quoted_flow(quote: &Quote<'_>) -> Option<((IpAddr, u16), (IpAddr, u16))> {
    let [source, destination] = match quote.protocol {
        // Eight bytes are quoted at least, which do not reach the flags (RFC 792).
        PROTOCOL_TCP => ports(quote.upper)?,
        protocol => match Part::read(protocol, quote.source.is_ipv4(), quote.upper) {
            Subject::Part(part) => part.ports,
            Subject::Later { .. } | Subject::Error(_) | Subject::Alone | Subject::Cut => return None,
        },
    };
    Some(((quote.source, source), (quote.destination, destination)))
}

/// What the rules are asked about a packet; `part` tells its ports.
pub(super) fn question(inner: &Inner, part: Option<&Part>) -> Question {
    let port = part.filter(|part| part.kind.has_ports()).map(|part| part.ports[1]);
    Question { source: inner.source, destination: inner.destination, protocol: inner.protocol, port }
}

/// What they would be asked about a packet the other way.
pub(super) fn question_back(inner: &Inner, part: &Part) -> Question {
    let port = part.kind.has_ports().then_some(part.ports[0]);
    Question { source: inner.destination, destination: inner.source, protocol: inner.protocol, port }
}
