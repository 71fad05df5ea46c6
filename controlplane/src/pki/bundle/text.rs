//! A trust bundle as a text, to be carried to a ceremony and back.
//!
//! ```text
//!  weir trust bundle 1
//!  base64 of version 1
//!  base64 of version 2
//!  …
//! ```
//!
//! What the versions are worth, [`super::Chain`] judges.

use data_encoding::BASE64;

use super::{SignedBundle, VERSIONS_MAX};
use crate::codec::{self, DecodeError};

/// What the text begins with.
const FIRST_LINE: &str = "weir trust bundle 1";

/// Why a text is no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleTextError {
    /// Something else.
    #[error("this is no trust bundle: it begins with the line {FIRST_LINE:?}")]
    FirstLine,
    /// A line is no version.
    #[error("line {line} of the trust bundle is no version of one: {error}")]
    Version {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        error: VersionTextError,
    },
    /// More versions than a chain holds.
    #[error("the trust bundle has more than {VERSIONS_MAX} versions")]
    TooMany,
}

/// Why a text is no version of a trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionTextError {
    /// It is no base64.
    #[error("it is no base64; take it as `weir ca bundle` wrote it")]
    Base64,
    /// What it stands for is no version, or longer than one may be.
    #[error(transparent)]
    Version(#[from] DecodeError),
}

/// One version in base64, as it stands in a line and in the API.
pub fn version(version: &SignedBundle) -> String {
    BASE64.encode(&codec::encode(version))
}

/// Reads what [`version`] wrote.
///
/// # Errors
/// [`VersionTextError`].
pub fn read_version(text: &str) -> Result<SignedBundle, VersionTextError> {
    let bytes = BASE64.decode(text.as_bytes()).map_err(|_| VersionTextError::Base64)?;
    Ok(codec::decode(&bytes, SignedBundle::LEN_MAX)?)
}

/// Versions as a text.
pub fn write(versions: &[SignedBundle]) -> String {
    let lines = std::iter::once(FIRST_LINE.to_owned()).chain(versions.iter().map(version));
    lines.map(|line| line + "\n").collect()
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`BundleTextError`].
pub fn read(bytes: &[u8]) -> Result<Vec<SignedBundle>, BundleTextError> {
    let text = std::str::from_utf8(bytes).map_err(|_| BundleTextError::FirstLine)?;
    let mut lines = (1..).zip(text.lines().map(str::trim));
    if lines.next().is_none_or(|(_, first)| first != FIRST_LINE) {
        return Err(BundleTextError::FirstLine);
    }
    let mut versions = Vec::new();
    for (line, text) in lines.filter(|(_, text)| !text.is_empty()) {
        versions.push(read_version(text).map_err(|error| BundleTextError::Version { line, error })?);
        if versions.len() > VERSIONS_MAX {
            return Err(BundleTextError::TooMany);
        }
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::bundle::tests::chain;

    #[test]
    fn versions_come_back_and_a_wrong_line_is_named() {
        let versions = chain().versions().to_vec();
        let text = write(&versions);
        assert_eq!(read(text.as_bytes()), Ok(versions.clone()));
        // As an editor on another system leaves it.
        assert_eq!(read((text.replace('\n', "\r\n") + "\r\n").as_bytes()), Ok(versions.clone()));
        assert_eq!(read(FIRST_LINE.as_bytes()), Ok(vec![]));
        for strange in [&b""[..], b"\xff", b"weir trust bundle 12\n", b"-----BEGIN CERTIFICATE-----"] {
            assert_eq!(read(strange), Err(BundleTextError::FirstLine));
        }
        let with = |line: &str| read(format!("{text}{line}\n").as_bytes());
        let line = versions.len() + 2;
        for (wrong, error) in [
            ("no base64!", VersionTextError::Base64),
            ("AAAAAAAA", VersionTextError::Version(DecodeError::Trailing(3))),
        ] {
            assert_eq!(read_version(wrong), Err(error.clone()));
            assert_eq!(with(wrong), Err(BundleTextError::Version { line, error }));
        }
    }

    /// The node took as many bytes from whoever asks as a message has.
    #[test]
    fn a_version_of_the_limit_is_read_and_one_byte_more_is_not() {
        let with_body = |body_len| SignedBundle { body: vec![0; body_len], signatures: vec![], zones: vec![] };
        let around = codec::encode(&with_body(SignedBundle::LEN_MAX - 16)).len() - (SignedBundle::LEN_MAX - 16);
        let longest = with_body(SignedBundle::LEN_MAX - around);
        assert_eq!(codec::encode(&longest).len(), SignedBundle::LEN_MAX);
        assert_eq!(read_version(&version(&longest)), Ok(longest));
        let longer = with_body(SignedBundle::LEN_MAX - around + 1);
        assert!(matches!(read_version(&version(&longer)), Err(VersionTextError::Version(_))));
    }

    #[test]
    fn so_many_versions_are_read_and_no_more() {
        let version = chain().versions()[0].clone();
        let text = |count| write(&vec![version.clone(); count]);
        assert_eq!(read(text(VERSIONS_MAX).as_bytes()).map(|versions| versions.len()), Ok(VERSIONS_MAX));
        assert_eq!(read(text(VERSIONS_MAX + 1).as_bytes()), Err(BundleTextError::TooMany));
    }
}
