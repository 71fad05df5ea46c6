//! Who may do what, by what the kernel says of the other end of a socket (SO_PEERCRED, `unix(7)`).
//!
//! Names are looked up in `/etc/passwd` and `/etc/group` once, when the server starts. Users and groups that only a directory service
//! knows are named by number. The kernel tells a process's primary group; that somebody is in a further group is taken from the
//! group's list of members.

use std::collections::BTreeSet;

use crate::api::types::Role;
use crate::config::{self, Principal};

/// The other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Allowed {
    everybody: bool,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

impl Allowed {
    fn has(&self, caller: Caller) -> bool {
        self.everybody || self.uids.contains(&caller.uid) || self.gids.contains(&caller.gid)
    }
}

/// Who has which role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    read: Allowed,
    operate: Allowed,
    admin: Allowed,
}

/// The superuser's number.
const ROOT: u32 = 0;

impl Access {
    /// Looks the configured names up. `own` is the user that weir runs as, who may do everything as root may. Names that nobody has come
    /// back as the second part; they allow nothing.
    pub fn resolve(api: &config::Api, passwd: &str, group: &str, own: u32) -> (Self, Vec<Principal>) {
        let mut unknown = Vec::new();
        let mut resolve = |principals: &[Principal]| {
            let mut allowed = Allowed::default();
            for principal in principals {
                match principal {
                    Principal::Everybody => allowed.everybody = true,
                    Principal::Uid(uid) => _ = allowed.uids.insert(*uid),
                    Principal::Gid(gid) => _ = allowed.gids.insert(*gid),
                    Principal::User(name) => match user(passwd, name) {
                        Some(uid) => _ = allowed.uids.insert(uid),
                        None => unknown.push(principal.clone()),
                    },
                    Principal::Group(name) => match members(group, name) {
                        Some((gid, names)) => {
                            allowed.gids.insert(gid);
                            allowed.uids.extend(names.filter_map(|name| user(passwd, name)));
                        }
                        None => unknown.push(principal.clone()),
                    },
                }
            }
            allowed
        };
        let mut access = Self { read: resolve(&api.read), operate: resolve(&api.operate), admin: resolve(&api.admin) };
        access.admin.uids.extend([ROOT, own]);
        (access, unknown)
    }

    /// Tests run as root or as the user that weir would run as, and want to be refused.
    #[cfg(test)]
    pub(super) fn forget_superuser(&mut self) {
        self.admin.uids.clear();
    }

    /// The highest role of somebody; none for a stranger.
    pub fn role(&self, caller: Caller) -> Option<Role> {
        [(Role::Admin, &self.admin), (Role::Operate, &self.operate), (Role::Read, &self.read)]
            .into_iter()
            .find_map(|(role, allowed)| allowed.has(caller).then_some(role))
    }
}

/// A user's number: `name:password:uid:…` (`passwd(5)`).
fn user(passwd: &str, name: &str) -> Option<u32> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(2)?.parse().ok())
}

/// A group's number and members: `name:password:gid:name,name` (`group(5)`).
fn members<'a>(group: &'a str, name: &str) -> Option<(u32, impl Iterator<Item = &'a str>)> {
    let mut fields = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = fields.find(|fields| fields.first() == Some(&name))?;
    let gid = fields.get(2)?.parse().ok()?;
    Some((gid, fields.get(3).copied().unwrap_or_default().split(',').filter(|name| !name.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nops:x:50:bob,nobody\nweir:x:60:\nbroken\n";

    fn caller(uid: u32, gid: u32) -> Caller {
        Caller { uid, gid }
    }

    fn api(read: &[Principal], operate: &[Principal], admin: &[Principal]) -> config::Api {
        config::Api { socket: "/s".into(), read: read.to_vec(), operate: operate.to_vec(), admin: admin.to_vec() }
    }

    #[test]
    fn each_caller_has_the_highest_role_that_names_it() {
        let (user, group) = (|name: &str| Principal::User(name.into()), |name: &str| Principal::Group(name.into()));
        let api = api(&[group("weir"), user("alice")], &[group("ops"), Principal::Gid(70)], &[user("alice")]);
        let (access, unknown) = Access::resolve(&api, PASSWD, GROUP, 77);
        assert_eq!(unknown, []);
        for (who, role) in [
            (caller(0, 9), Some(Role::Admin)),
            (caller(77, 9), Some(Role::Admin)),
            (caller(1000, 1000), Some(Role::Admin)),
            (caller(1001, 1001), Some(Role::Operate)),
            (caller(5, 50), Some(Role::Operate)),
            (caller(5, 70), Some(Role::Operate)),
            (caller(5, 60), Some(Role::Read)),
            (caller(5, 0), None),
            (caller(50, 5), None),
        ] {
            assert_eq!(access.role(who), role, "{who:?}");
        }
    }

    #[test]
    fn names_that_nobody_has_allow_nothing_and_are_told() {
        let unknown = [Principal::User("carol".into()), Principal::Group("wheel".into())];
        let (access, told) = Access::resolve(&api(&unknown, &[], &[]), PASSWD, GROUP, 77);
        assert_eq!(told, unknown);
        assert_eq!(access.role(caller(1000, 1000)), None);
        let (access, _) = Access::resolve(&api(&[Principal::Everybody], &[], &[]), "", "", 77);
        assert_eq!(access.role(caller(1, 1)), Some(Role::Read));
    }
}
