//! Questions as they come and answers as they go (RFC 1035 §4, RFC 6891, RFC 7873, RFC 8914).
//!
//! Written and read by the DNS library; here is what of it is taken, and what is said in which case. The question goes back byte for byte, so that
//! whoever spelled it in mixed letters finds that again.

use domain::base::iana::{Class, ExtendedErrorCode, Opcode, OptRcode, Rcode as LibraryRcode};
use domain::base::message_builder::{AdditionalBuilder, PushError};
use domain::base::opt::{Cookie, ExtendedError};
use domain::base::rdata::UnknownRecordData;
use domain::base::{Message, MessageBuilder, Rtype, StaticCompressor, ToName as _, Ttl};
use domain::rdata::AllRecordData;

use super::answer::{Answer, Rcode};
use super::catalog::NoAnswer;
use crate::pki::dnssec::Name;
use crate::pki::dnssec::rrset::SignedSet;
use crate::time::Now;

/// Longest question that is read: a name, and options.
pub const QUERY_LEN_MAX: usize = 1024;
/// Longest answer by UDP. Ours: what passes every path unfragmented (DNS flag day 2020).
pub const UDP_LEN_MAX: usize = 1232;
/// Shortest that a client has to take (RFC 1035 §2.3.4).
const UDP_LEN_MIN: usize = 512;
/// Longest answer by TCP.
pub const TCP_LEN_MAX: usize = 65_535;

/// A question.
#[derive(Clone, Debug)]
pub struct Query {
    /// What is asked for, in lower case.
    pub name: Name,
    /// Of which type.
    pub rtype: Rtype,
    /// As it was asked.
    spelled: Name,
    id: u16,
    is_recursion_desired: bool,
    edns: Option<Edns>,
}

#[derive(Clone, Debug)]
struct Edns {
    udp_len: usize,
    is_dnssec_ok: bool,
    version: u8,
    cookie: Option<Cookie>,
}

/// Why bytes are answered with an error, or with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No answer goes back: it is one itself, or has no header.
    Silent,
    /// Not a message (RFC 1035 §4.1.1).
    Format,
    /// Something other than a question.
    NotImplemented,
}

impl Query {
    /// Reads a question.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let message = Message::from_octets(bytes).map_err(|_| Malformed::Silent)?;
        let header = message.header();
        if header.qr() {
            return Err(Malformed::Silent);
        }
        if bytes.len() > QUERY_LEN_MAX {
            return Err(Malformed::Format);
        }
        if header.opcode() != Opcode::QUERY {
            return Err(Malformed::NotImplemented);
        }
        let question = message.sole_question().map_err(|_| Malformed::Format)?;
        if question.qclass() != Class::IN {
            return Err(Malformed::NotImplemented);
        }
        // One OPT at most, and everything up to it has to be readable (RFC 6891 §6.1.1).
        let mut edns = None;
        for record in message.additional().map_err(|_| Malformed::Format)? {
            let record = record.map_err(|_| Malformed::Format)?;
            if record.rtype() == Rtype::OPT {
                if edns.is_some() {
                    return Err(Malformed::Format);
                }
                let opt = message.opt().ok_or(Malformed::Format)?;
                let all = opt.opt().iter::<domain::base::opt::UnknownOptData<_>>();
                for option in all {
                    option.map_err(|_| Malformed::Format)?;
                }
                edns = Some(Edns {
                    udp_len: opt.udp_payload_size().into(),
                    is_dnssec_ok: opt.dnssec_ok(),
                    version: opt.version(),
                    cookie: opt.opt().cookie(),
                });
            }
        }
        let spelled: Name = question.qname().to_name();
        let mut name = spelled.clone();
        name.make_canonical();
        let (id, is_recursion_desired) = (header.id(), header.rd());
        Ok(Self { name, rtype: question.qtype(), spelled, id, is_recursion_desired, edns })
    }

    /// Whether it asks for proofs (RFC 3225).
    pub fn is_dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.is_dnssec_ok)
    }

    /// Its cookie.
    pub fn cookie(&self) -> Option<&Cookie> {
        self.edns.as_ref()?.cookie.as_ref()
    }

    /// How long an answer by UDP may be.
    pub fn udp_len(&self) -> usize {
        self.edns.as_ref().map_or(UDP_LEN_MIN, |edns| edns.udp_len.clamp(UDP_LEN_MIN, UDP_LEN_MAX))
    }
}

/// What is said to a question.
#[derive(Debug)]
pub enum Said<'a> {
    /// This.
    Answer(&'a Answer<'a>),
    /// There is no such name, to somebody who asks for no proof.
    NoSuchName,
    /// Nothing, for this reason.
    None(NoAnswer),
    /// Ask by TCP.
    ByTcp,
}

/// How an answer is built.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    /// Bytes at most.
    pub len_max: usize,
    /// The cookie that goes along.
    pub cookie: Option<&'a Cookie>,
}

/// An answer to a question.
pub fn answer(query: &Query, said: &Said<'_>, form: Form<'_>, now: Now) -> Vec<u8> {
    match whole(query, said, form, now) {
        Ok(message) => message,
        // What does not fit is asked for by TCP: parts of it would be taken for all (RFC 2181 §9).
        Err(PushError::LimitExceeded | PushError::CountOverflow | PushError::ShortBuf) => {
            whole(query, &Said::ByTcp, form, now).unwrap_or_default()
        }
    }
}

type Target = StaticCompressor<Vec<u8>>;

fn whole(query: &Query, said: &Said<'_>, form: Form<'_>, now: Now) -> Result<Vec<u8>, PushError> {
    let builder = MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512)));
    let mut builder = builder.map_err(|_| PushError::ShortBuf)?;
    builder.set_push_limit(form.len_max);
    let is_bad_version = query.edns.as_ref().is_some_and(|edns| edns.version != 0);
    let (rcode, error) = if is_bad_version { (OptRcode::BADVERS, None) } else { codes(said) };
    let header = builder.header_mut();
    header.set_id(query.id);
    header.set_qr(true);
    header.set_rd(query.is_recursion_desired);
    header.set_rcode(rcode.rcode());
    header.set_aa(matches!(said, Said::Answer(_) | Said::NoSuchName));
    header.set_tc(matches!(said, Said::ByTcp));
    let mut question = builder.question();
    question.push((&query.spelled, query.rtype))?;
    let mut section = question.answer();
    let Said::Answer(answer) = said else { return finish(section.additional(), query, rcode, error, form) };
    let (is_dnssec_ok, ttl) = (query.is_dnssec_ok(), answer.ttl(now));
    for set in &answer.answer {
        push(is_dnssec_ok, set, ttl, |owner, ttl, data| section.push((owner, ttl, data)))?;
    }
    let mut section = section.authority();
    for set in &answer.authority {
        // What only proves is for those who asked for proofs.
        if is_dnssec_ok || set.set.rtype != Rtype::NSEC {
            push(is_dnssec_ok, set, ttl, |owner, ttl, data| section.push((owner, ttl, data)))?;
        }
    }
    finish(section.additional(), query, rcode, error, form)
}

fn push(
    is_dnssec_ok: bool,
    set: &SignedSet,
    ttl: u32,
    mut push: impl FnMut(&Name, Ttl, UnknownRecordData<&[u8]>) -> Result<(), PushError>,
) -> Result<(), PushError> {
    let mut push = |rtype: Rtype, rdata: &[u8]| {
        let data = UnknownRecordData::from_octets(rtype, rdata).map_err(|_| PushError::ShortBuf)?;
        push(&set.set.owner, Ttl::from_secs(ttl), data)
    };
    for rdata in set.set.rdata() {
        push(set.set.rtype, rdata)?;
    }
    if is_dnssec_ok { push(Rtype::RRSIG, &set.rrsig_rdata()) } else { Ok(()) }
}

fn codes(said: &Said<'_>) -> (OptRcode, Option<(ExtendedErrorCode, &'static str)>) {
    match said {
        Said::Answer(answer) if answer.rcode == Rcode::NxDomain => (OptRcode::NXDOMAIN, None),
        Said::NoSuchName => (OptRcode::NXDOMAIN, None),
        Said::Answer(_) | Said::ByTcp => (OptRcode::NOERROR, None),
        Said::None(NoAnswer::NotOurs) => {
            (OptRcode::REFUSED, Some((ExtendedErrorCode::NOT_AUTHORITATIVE, "this is no name of the overlay")))
        }
        Said::None(NoAnswer::NoProof) => {
            (OptRcode::SERVFAIL, Some((ExtendedErrorCode::NSEC_MISSING, "no fresh proof that it is not there")))
        }
        Said::None(NoAnswer::NoZone) => {
            (OptRcode::SERVFAIL, Some((ExtendedErrorCode::NOT_READY, "this gateway has no signed zone yet")))
        }
        Said::None(NoAnswer::Unreachable) => {
            (OptRcode::SERVFAIL, Some((ExtendedErrorCode::NO_REACHABLE_AUTHORITY, "nobody who has it answers")))
        }
    }
}

fn finish(
    mut additional: AdditionalBuilder<Target>,
    query: &Query,
    rcode: OptRcode,
    error: Option<(ExtendedErrorCode, &'static str)>,
    form: Form<'_>,
) -> Result<Vec<u8>, PushError> {
    if query.edns.is_some() {
        additional.opt(|opt| {
            opt.set_udp_payload_size(UDP_LEN_MAX as u16);
            opt.set_rcode(rcode);
            opt.set_dnssec_ok(query.is_dnssec_ok());
            if let Some(cookie) = form.cookie {
                opt.push(cookie)?;
            }
            if let Some((code, text)) = error
                && let Ok(error) = ExtendedError::<Vec<u8>>::new_with_str(code, text)
            {
                opt.push(&error)?;
            }
            Ok(())
        })?;
    }
    Ok(additional.finish().into_target())
}

/// The answer to bytes that are no question; nothing to some.
pub fn refusal(bytes: &[u8], why: Malformed) -> Option<Vec<u8>> {
    let rcode = match why {
        Malformed::Silent => return None,
        Malformed::Format => LibraryRcode::FORMERR,
        Malformed::NotImplemented => LibraryRcode::NOTIMP,
    };
    let message = Message::from_octets(bytes).ok()?;
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(message.header().id());
    header.set_opcode(message.header().opcode());
    header.set_qr(true);
    header.set_rd(message.header().rd());
    header.set_rcode(rcode);
    Some(builder.finish())
}

/// RDATA as in a zone file; what is of an unknown form in that of RFC 3597.
pub fn shown(rtype: Rtype, rdata: &[u8]) -> String {
    use domain::base::rdata::ParseAnyRecordData as _;
    use domain::base::zonefile_fmt::{DisplayKind, ZonefileFmt as _};
    use domain::dep::octseq::Parser;
    let mut parser = Parser::from_ref(rdata);
    match AllRecordData::<&[u8], domain::base::ParsedName<&[u8]>>::parse_any_rdata(rtype, &mut parser) {
        Ok(data) => data.display_zonefile(DisplayKind::Simple).to_string(),
        Err(_) => format!("\\# {} {}", rdata.len(), data_encoding::HEXLOWER.encode(rdata)),
    }
}

/// Whether RDATA is well formed for its type, in canonical form, and no longer than that.
pub fn is_canonical(rtype: Rtype, rdata: &[u8]) -> bool {
    use domain::base::rdata::ComposeRecordData as _;
    use domain::base::{ParsedName, rdata::ParseAnyRecordData as _};
    use domain::dep::octseq::Parser;
    let mut parser = Parser::from_ref(rdata);
    let Ok(data) = AllRecordData::<&[u8], ParsedName<&[u8]>>::parse_any_rdata(rtype, &mut parser) else {
        return false;
    };
    let mut canonical = Vec::with_capacity(rdata.len());
    parser.remaining() == 0 && data.compose_canonical_rdata(&mut canonical).is_ok() && canonical == rdata
}
