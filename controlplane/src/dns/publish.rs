//! What a member publishes under its name beside its address: records as people write them, and services.

use domain::base::Rtype;
use domain::base::rdata::ComposeRecordData as _;
use domain::dep::octseq::OctetsInto as _;
use domain::zonefile::inplace::{Entry as Line, Zonefile};

use super::member::{TYPES, ZoneError};
use super::message::is_canonical;
use crate::dht::record::ServiceValue;
use crate::pki::dnssec::rrset::SetError;
use crate::pki::dnssec::{LongName, Name, below};

/// Longest text of a record.
pub const TEXT_LEN_MAX: usize = 512;

/// Why a record is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Its name.
    #[error(
        "{0:?} is no name below this member's: write labels with dots between, @ for the member's own, or a * before them"
    )]
    Name(String),
    /// Its type.
    #[error("{0:?} is none of the types that a member publishes: A, AAAA, TXT, SRV, CNAME, PTR")]
    Type(String),
    /// What it says.
    #[error("{text:?} is no {rtype}: {why}")]
    Data {
        /// Of which type.
        rtype: Rtype,
        /// As it was written.
        text: String,
        /// What is wrong.
        why: String,
    },
}

/// One record that a member publishes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Labels below the member's name; `@` for that itself.
    pub name: String,
    /// Of which type.
    pub rtype: Rtype,
    /// As in a zone file (RFC 1035 §5.1); names without a dot at their end are below the member's own.
    pub data: String,
}

impl Entry {
    /// Checks a record as it was written.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn new(name: &str, rtype: &str, data: &str) -> Result<Self, PublishError> {
        let known = TYPES.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(rtype));
        let rtype = known.ok_or_else(|| PublishError::Type(rtype.to_owned()))?;
        let entry = Self { name: name.to_ascii_lowercase(), rtype, data: data.to_owned() };
        let somewhere: Name = "m.n.internal".parse().expect("a name");
        entry.owner(&somewhere).map_err(|_| PublishError::Name(name.to_owned()))?;
        entry.rdata(&somewhere)?;
        Ok(entry)
    }

    fn owner(&self, apex: &Name) -> Result<Name, SetError> {
        if self.name == "@" {
            return Ok(apex.clone());
        }
        let is_label = |label: &str| {
            let is_known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
            label == "*" || (!label.is_empty() && label.bytes().all(is_known))
        };
        let mut labels = self.name.split('.');
        let is_star_first = labels.clone().skip(1).all(|label| label != "*");
        if !labels.all(is_label) || !is_star_first {
            return Err(SetError::Form);
        }
        Ok(below(self.name.split('.').map(str::as_bytes), apex)?)
    }

    fn rdata(&self, apex: &Name) -> Result<Vec<u8>, PublishError> {
        let wrong = |why: String| PublishError::Data { rtype: self.rtype, text: self.data.clone(), why };
        if self.data.len() > TEXT_LEN_MAX || self.data.contains(['\n', '\r', ';', '(', ')', '$']) {
            return Err(wrong(format!("one line of at most {TEXT_LEN_MAX} characters, without ; ( ) $")));
        }
        let mut file = Zonefile::new();
        file.extend_from_slice(format!("@ 30 IN {} {}\n", self.rtype, self.data).as_bytes());
        file.set_origin(apex.clone().octets_into());
        let line = file.next_entry().map_err(|error| wrong(error.to_string()))?;
        let Some(Line::Record(record)) = line else { return Err(wrong("there is no record in it".into())) };
        let mut rdata = vec![];
        // A vector takes all that is written to it.
        let _ = record.data().compose_canonical_rdata(&mut rdata);
        if is_canonical(self.rtype, &rdata) { Ok(rdata) } else { Err(wrong("it is not well formed".into())) }
    }

    /// Its owner and its RDATA in the zone of a member.
    ///
    /// # Errors
    /// [`ZoneError::Name`].
    pub fn resolve(&self, apex: &Name) -> Result<(Name, Vec<u8>), ZoneError> {
        let rdata = self.rdata(apex).map_err(|_| SetError::Form)?;
        Ok((self.owner(apex)?, rdata))
    }
}

/// What is said of a service (RFC 2782, RFC 6763 §6): where it is, and texts.
///
/// # Errors
/// [`LongName`].
pub fn service(service: &ServiceValue, apex: &Name) -> Result<Vec<(Name, Rtype, Vec<u8>)>, LongName> {
    let owner = below(service.label.split('.').map(str::as_bytes), apex)?;
    let [high, low] = service.port.to_be_bytes();
    let srv = [&[0, 0, 0, 0, high, low][..], apex.as_slice()].concat();
    let mut texts: Vec<u8> =
        service.texts.iter().flat_map(|text| std::iter::once(text.len() as u8).chain(text.iter().copied())).collect();
    if texts.is_empty() {
        // A TXT has at least one string (RFC 6763 §6.1).
        texts.push(0);
    }
    Ok(vec![(owner.clone(), Rtype::SRV, srv), (owner, Rtype::TXT, texts)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apex() -> Name {
        "b.mynet.internal".parse().unwrap()
    }

    #[test]
    fn records_are_written_as_in_a_zone_file() {
        let of = |name, rtype, data| Entry::new(name, rtype, data).unwrap().resolve(&apex()).unwrap();
        let (owner, rdata) = of("www", "a", "192.0.2.7");
        assert_eq!((owner.to_string().as_str(), &rdata[..]), ("www.b.mynet.internal", &[192, 0, 2, 7][..]));
        assert_eq!(of("@", "AAAA", "fd00::1").1.len(), 16);
        assert_eq!(of("*.pool", "A", "192.0.2.7").0.to_string(), "*.pool.b.mynet.internal");
        assert_eq!(of("@", "TXT", "\"k=v w\"").1, b"\x05k=v w");
        assert_eq!(of("alias", "CNAME", "www").1, "www.b.mynet.internal".parse::<Name>().unwrap().as_slice());
        assert_eq!(of("alias", "CNAME", "Elsewhere.Example.").1, b"\x09elsewhere\x07example\0");
        let srv = of("_sip._udp", "SRV", "0 5 5060 www").1;
        assert_eq!(srv[..7], [0, 0, 0, 5, 19, 196, 3]);
    }

    #[test]
    fn what_is_written_wrongly_is_refused_with_what_is_wrong() {
        for name in ["", ".", "a..b", "a b", "x.*", "www.", "ä", &"a".repeat(64)] {
            assert_eq!(Entry::new(name, "A", "192.0.2.1"), Err(PublishError::Name(name.into())), "{name}");
        }
        for rtype in ["NS", "DNSKEY", "MX", "X"] {
            assert_eq!(Entry::new("a", rtype, ""), Err(PublishError::Type(rtype.into())));
        }
        for (rtype, data) in [
            ("A", "192.0.2"),
            ("A", ""),
            ("A", "192.0.2.1 192.0.2.2"),
            ("AAAA", "192.0.2.1"),
            ("SRV", "1 2 3"),
            ("CNAME", "a b"),
            ("TXT", "a\nb 30 IN A 1.2.3.4"),
            ("A", "192.0.2.1 ; x"),
            ("CNAME", "a..b"),
        ] {
            let refused = Entry::new("a", rtype, data).unwrap_err();
            assert!(matches!(refused, PublishError::Data { .. }), "{rtype} {data}: {refused}");
        }
    }

    #[test]
    fn a_service_is_an_srv_and_a_txt() {
        let value = ServiceValue { label: "_http._tcp".into(), port: 80, texts: vec![b"k=v".to_vec(), vec![]] };
        let said = service(&value, &apex()).unwrap();
        assert_eq!(said[0].0.to_string(), "_http._tcp.b.mynet.internal");
        assert!(is_canonical(Rtype::SRV, &said[0].2) && is_canonical(Rtype::TXT, &said[1].2));
        assert_eq!(said[1].2, b"\x03k=v\0");
        let bare = service(&ServiceValue { texts: vec![], ..value }, &apex()).unwrap();
        assert_eq!(bare[1].2, [0]);
    }
}
