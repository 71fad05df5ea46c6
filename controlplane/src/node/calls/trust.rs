//! Calls about whom the network believes: trust bundles and revocation lists, shown and handed in.

use super::error;
use crate::api::call::Answer;
use crate::api::types::{Bundles, Done, ErrorCode, RevocationList};
use crate::node::documents::ListsHeard;
use crate::node::status::pem;
use crate::node::{CallId, Links, Node};
use crate::pki::bundle::{Chain, text};
use crate::pki::id::KeyId;
use crate::pki::revocation::{self, RevocationError};
use crate::random::Random;
use crate::time::Now;

impl<R: Random> Node<R> {
    pub(super) fn show_bundles(&mut self, id: CallId) {
        let chain = self.network.as_ref().map(|network| &network.chain);
        let versions = chain.map(Chain::versions).unwrap_or_default();
        let versions = versions.iter().map(text::version).collect();
        let roots = chain.map(|chain| chain.current().roots.iter().map(|der| pem("CERTIFICATE", der)).collect());
        self.answer(id, Ok(Answer::Bundles(Bundles { versions, roots: roots.unwrap_or_default() })));
    }

    pub(super) fn apply_bundles(&mut self, id: CallId, versions: &[String], links: &mut dyn Links, now: Now) {
        let decoded: Result<Vec<_>, _> = versions.iter().map(|version| text::read_version(version.trim())).collect();
        let bundles = match decoded {
            Ok(bundles) => bundles,
            Err(wrong) => {
                let message = format!("a version of the trust bundle does not decode: {wrong}");
                let remedy = "give the file that the ceremony wrote, unchanged";
                return self.answer(id, Err(error(ErrorCode::BadRequest, message, remedy)));
            }
        };
        let version = |node: &Self| node.network.as_ref().map_or(0, |network| network.bundle.version);
        let before = version(self);
        let taken = self.take_bundles(None, bundles, links, now);
        let answer = match (taken, version(self)) {
            (Err(refused), _) => {
                let message = format!("a version of the trust bundle is refused: {refused}");
                Err(error(ErrorCode::Conflict, message, "make the ceremony with the newest bundle: `weir ca bundle`"))
            }
            (Ok(()), after) if after > before => {
                Ok(format!("version {after} of the trust bundle is in force and spreads"))
            }
            (Ok(()), _) => Ok(format!("version {before} of the trust bundle was in force already")),
        };
        self.answer(id, answer.map(|message| Answer::Done(Done { message })));
    }

    pub(super) fn revocation_list(&mut self, id: CallId, signer: &str) {
        let found = signer.parse::<KeyId>().map_err(|wrong| wrong.to_string()).and_then(|signer| {
            let list = self.revocations.list(signer, 0);
            list.map(|list| (signer, list)).ok_or_else(|| format!("this node knows no revocation list of {signer}"))
        });
        let answer = match found {
            Ok((signer, list)) => Ok(Answer::RevocationList(RevocationList {
                signer: signer.to_string(),
                entries: list.entries.len() as u32,
                list: revocation::text::write(&list),
            })),
            Err(message) => Err(error(ErrorCode::NotFound, message, "name the signer by its key id")),
        };
        self.answer(id, answer);
    }

    pub(super) fn apply_revocations(&mut self, id: CallId, text: &str, links: &mut dyn Links, now: Now) {
        let list = match revocation::text::read(text) {
            Ok(list) => list,
            Err(wrong) => {
                let remedy = "give the file that `weir ca sign-revocations` wrote, unchanged";
                return self.answer(id, Err(error(ErrorCode::BadRequest, wrong.to_string(), remedy)));
            }
        };
        let heard = self.heard_lists(None, vec![list.clone()], links, now);
        let answer = match heard {
            ListsHeard { refused: Some(refused), .. } => {
                let remedy = match &refused {
                    RevocationError::Stranger(_) => "`weir ca add-revocation-key` names a key in the trust bundle",
                    _ => "sign it anew, beginning with the list that the network knows: `weir ca revocation-list`",
                };
                let message = format!("the revocation list is refused: {refused}");
                Err(error(ErrorCode::Conflict, message, remedy))
            }
            ListsHeard { added, is_news: true, .. } => {
                // Our issuer hears it from nobody else.
                self.tell_issuer(vec![list], None);
                Ok(format!("the revocation list is in force and spreads; it has {added} more entries than before"))
            }
            ListsHeard { .. } => Ok("the revocation list was in force already".to_owned()),
        };
        self.answer(id, answer.map(|message| Answer::Done(Done { message })));
    }
}
