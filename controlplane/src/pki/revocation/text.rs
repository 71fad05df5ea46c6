//! A revocation list as a text, to be carried to where a revocation key is, and back.
//!
//! ```text
//!  weir revocation list 1
//!  base64 of the whole list
//! ```
//!
//! What the list is worth, [`super::RevocationSet`] judges.

use data_encoding::BASE64;

use super::SignedRevocationList;
use crate::codec::{self, DecodeError};

/// What the text begins with.
const FIRST_LINE: &str = "weir revocation list 1";
/// Most bytes of a list: [`super::ENTRIES_MAX`] entries with the longest reasons fit.
const LEN_MAX: usize = 1 << 20;

/// Why a text is no revocation list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListTextError {
    /// Something else.
    #[error("this is no revocation list: it begins with the line {FIRST_LINE:?}")]
    FirstLine,
    /// There is not one line behind the first.
    #[error("a revocation list has one line behind the first, this has {0}")]
    Lines(usize),
    /// It is no base64.
    #[error("the revocation list is no base64; take it as it was written")]
    Base64,
    /// What it stands for is no list, or longer than one may be.
    #[error("the revocation list does not decode: {0}")]
    List(#[from] DecodeError),
}

/// A list as a text.
pub fn write(list: &SignedRevocationList) -> String {
    format!("{FIRST_LINE}\n{}\n", BASE64.encode(&codec::encode(list)))
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`ListTextError`].
pub fn read(text: &str) -> Result<SignedRevocationList, ListTextError> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.next() != Some(FIRST_LINE) {
        return Err(ListTextError::FirstLine);
    }
    let rest: Vec<&str> = lines.collect();
    let [line] = rest[..] else { return Err(ListTextError::Lines(rest.len())) };
    let bytes = BASE64.decode(line.as_bytes()).map_err(|_| ListTextError::Base64)?;
    Ok(codec::decode(&bytes, LEN_MAX)?)
}

#[cfg(test)]
mod tests {
    use super::super::{ENTRIES_MAX, Entry, REASON_LEN_MAX, Revoked};
    use super::*;
    use crate::pki::bundle::tests::key;
    use crate::pki::id::NodeId;
    use crate::time::UnixSecs;

    fn list(count: usize, reason_len: usize) -> SignedRevocationList {
        let entry =
            Entry { what: Revoked::Node(NodeId([0xff; 32])), reason: "r".repeat(reason_len), at: UnixSecs(u64::MAX) };
        SignedRevocationList::sign(&key(21), u64::MAX, UnixSecs(7), UnixSecs(7), vec![entry; count])
    }

    #[test]
    fn a_list_comes_back_from_its_text_and_the_longest_one_too() {
        for list in [list(0, 0), list(2, 9), list(ENTRIES_MAX, REASON_LEN_MAX)] {
            assert_eq!(read(&write(&list)), Ok(list.clone()));
            assert_eq!(read(&write(&list).replace('\n', "\r\n\r\n")), Ok(list));
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_it_says_why() {
        let text = write(&list(1, 1));
        let (first, line) = text.split_once('\n').unwrap();
        for wrong in ["", "weir trust bundle 1\nAAAA\n", line] {
            assert_eq!(read(wrong), Err(ListTextError::FirstLine));
        }
        assert_eq!(read(first), Err(ListTextError::Lines(0)));
        assert_eq!(read(&format!("{text}{line}")), Err(ListTextError::Lines(2)));
        assert_eq!(read(&format!("{first}\n!")), Err(ListTextError::Base64));
        assert!(matches!(read(&format!("{first}\nAAAA")), Err(ListTextError::List(_))));
        let longest = BASE64.encode(&vec![0; LEN_MAX + 1]);
        assert!(matches!(read(&format!("{first}\n{longest}")), Err(ListTextError::List(_))));
    }
}
