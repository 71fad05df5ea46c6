//! The tree of commands.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::messages::{Recv, Send};
use crate::ceremony::AHEAD_MAX;
use crate::config::{Config, ConfigError, Instance};
use crate::dht::record::Kind;
use crate::pki::dnssec::PARENT;

/// Weir: gateways that find each other and carry packets between their networks, encrypted.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    arg_required_else_help = true,
    after_help = "Exit status: 0 done, 1 refused or failed, 2 wrong command line, 3 the node does not answer."
)]
pub struct Arguments {
    /// The configuration file [default: /etc/weir/INSTANCE.toml, if it is there].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which network of this host it is about.
    #[arg(long, global = true, value_name = "NAME", default_value = "weir")]
    pub instance: Instance,
    /// Where the node listens [default: as the configuration says].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// The configuration that the command goes by; a socket that was named goes before the one in the file.
    pub(super) fn configuration(&self) -> Result<Config, ConfigError> {
        let mut config = Config::find(self.config.as_deref(), &self.instance)?;
        if let Some(socket) = &self.socket {
            config.api.socket.clone_from(socket);
        }
        Ok(config)
    }

    /// What to start a process of the same node with: all that decides which node it is.
    pub(super) fn of_the_node(&self) -> Vec<OsString> {
        let mut arguments = vec!["--instance".into(), self.instance.to_string().into()];
        for (option, path) in [("--config", &self.config), ("--socket", &self.socket)] {
            if let Some(path) = path {
                arguments.extend([option.into(), path.clone().into_os_string()]);
            }
        }
        arguments
    }

    /// The node's socket.
    pub(super) fn socket(&self) -> Result<PathBuf, ConfigError> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => self.configuration().map(|config| config.api.socket),
        }
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Found a network: roots, first issuer, and this node as its first member.
    Init(Init),
    /// Invite somebody: prints the token. On issuers.
    Invite(Invite),
    /// Show the invitations that were given out. On issuers.
    Invites {
        /// What else to do with them.
        #[command(subcommand)]
        command: Option<InvitesCommand>,
    },
    /// Join a network.
    Join {
        /// The token; `-` reads it from the standard input, where no other user sees it.
        token: String,
        /// The name to ask for, if the token leaves a choice.
        #[arg(long)]
        name: Option<String>,
        /// Where a member is, whichever, to join through it: it is tried before the addresses in the token. May be said more than once.
        #[arg(long, value_name = "ADDRESS")]
        via: Vec<SocketAddr>,
    },
    /// Leave the network, and forget keys and certificates.
    Leave {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Show the members of the network.
    Members,
    /// This node's certificate.
    Cert {
        /// What to do with it.
        #[command(subcommand)]
        command: CertCommand,
    },
    /// Roots and issuers: ceremonies on files.
    Ca {
        /// Which one.
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Cut a member off. On issuers.
    Revoke {
        /// Its name or id.
        #[arg(required_unless_present = "issuer")]
        member: Option<String>,
        /// Cut an issuer off instead, and all certificates that it signed.
        #[arg(long, value_name = "KEY-ID", conflicts_with_all = ["member", "replace"])]
        issuer: Option<String>,
        /// Why, for the list and the log.
        #[arg(long, default_value = "")]
        reason: String,
        /// Invite a successor with the same name and prefixes: prints the token.
        #[arg(long)]
        replace: bool,
    },
    /// The network's policy.
    Policy {
        /// What to do with it.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Show the audit log.
    Log {
        /// Entries after this number [default: the last ones].
        #[arg(long)]
        after: Option<u64>,
        /// How many at most [default: 100].
        #[arg(long)]
        limit: Option<u32>,
        /// Check the whole log instead: that every entry is the issuer's and continues the one before.
        #[arg(long, conflicts_with_all = ["after", "limit"])]
        verify: bool,
    },
    /// Show how it stands with this node.
    Status {
        /// For monitoring: print one line; exit with 0 when all is well, 1 for a warning, 2 for worse.
        #[arg(long)]
        check: bool,
    },
    /// Show the peers: path, round-trip time, loss, rates, keys.
    Peers {
        /// Show instead where members were said to be, and what came of trying these addresses.
        #[arg(long)]
        discovered: bool,
    },
    /// Measure a peer by echoes.
    Ping {
        /// Its name, id or overlay address.
        peer: String,
        /// How many.
        #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=20))]
        count: u16,
    },
    /// Find a member by name, id or overlay address, wherever it is, or a service of a member, as _http._tcp.site-b.
    Find {
        /// Whom, or what.
        what: String,
        /// Ask the DHT even for whom this node knows, and show the way.
        #[arg(long)]
        dht: bool,
    },
    /// The DHT: how members find one another with no server.
    Dht {
        /// What to do.
        #[command(subcommand)]
        command: DhtCommand,
    },
    /// Names: what this member publishes, and what verifies others'.
    Dns {
        /// What to do.
        #[command(subcommand)]
        command: DnsCommand,
    },
    /// Make a fresh key exchange with a peer now. It happens by itself every two minutes.
    Rekey {
        /// Its name, id or overlay address.
        peer: String,
    },
    /// Send a message to a member, or to each of a group. It is kept until it is taken, also while the receiver is away.
    Send(Send),
    /// Receive messages, and wait for them: prints their bodies as they are, or with --json a line each.
    Recv(Recv),
    /// Show the messages that wait for others, and those that wait here.
    Messages,
    /// The configuration file.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run the node: control plane and packet plane.
    Run,
    /// Run the control plane alone: `run` starts it.
    #[command(hide = true)]
    Control(Child),
    /// Run the issuer alone: `run` starts it.
    #[command(hide = true)]
    Issuer(Child),
    /// Run multicast DNS alone: `run` starts it.
    #[command(hide = true)]
    Mdns(Child),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages.
    #[command(hide = true)]
    Man {
        /// Where to.
        directory: PathBuf,
    },
    /// Write the pages of the API.
    #[command(hide = true)]
    Docs {
        /// Where to.
        directory: PathBuf,
    },
}

/// A process that `weir run` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct Child {
    /// End with the process with this id, which must be the one that starts this.
    #[arg(long, value_name = "PID")]
    pub parent: Option<u32>,
}

/// `weir init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The network's name: one label of a-z, 0-9 and -.
    pub network: String,
    /// This node's name [default: the host's].
    #[arg(long)]
    pub name: Option<String>,
    /// The domain under which the network's names stand, for good: site-b of mynet is site-b.mynet.internal. One of your own takes a delegation there
    /// before names can be verified from outside.
    #[arg(long, value_name = "DOMAIN", default_value = PARENT)]
    pub dns_parent: String,
    /// Where to put the roots' keys. Move them to two places off line afterwards.
    #[arg(long, value_name = "DIRECTORY")]
    pub roots: PathBuf,
    /// What becomes of packets that no rule of the policy is about.
    #[arg(long, value_name = "WHAT", default_value = "allow")]
    pub default: Verdict,
    /// Prefixes that this network gives out to the networks behind its members, for good [default: those of --subnet, and a /16 and a
    /// /48 that this host has no route into].
    #[arg(long, value_name = "PREFIX")]
    pub pool: Vec<String>,
    /// Prefixes behind this node.
    #[arg(long, value_name = "PREFIX")]
    pub subnet: Vec<String>,
    /// Groups of this node.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// File whose first line is the passphrase of root A [default: ask].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file_a: Option<PathBuf>,
    /// File whose first line is the passphrase of root B [default: ask].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file_b: Option<PathBuf>,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    /// They pass.
    Allow,
    /// They do not.
    Deny,
}

/// `weir invite`.
#[derive(Debug, Args)]
pub struct Invite {
    /// The member's name, or a pattern that ends in `*`.
    #[arg(long)]
    pub name: String,
    /// The prefix behind it; `auto` for the next free one.
    #[arg(long, value_name = "PREFIX")]
    pub subnet: Option<String>,
    /// A group of it. May be said more than once.
    #[arg(long)]
    pub group: Vec<String>,
    /// A role of it, as relay. May be said more than once.
    #[arg(long)]
    pub role: Vec<String>,
    /// How long the token is good, as 90s, 30m, 1h, 2d.
    #[arg(long, value_parser = duration, default_value = "1h")]
    pub ttl: Duration,
    /// How many may join by it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: u32,
    /// Take the place of this member: it is cut off, its name and prefixes are given again.
    #[arg(long, value_name = "MEMBER")]
    pub replace: Option<String>,
}

/// `weir invites`.
#[derive(Debug, Subcommand)]
pub enum InvitesCommand {
    /// Take one back. Who joined by it stays.
    Withdraw {
        /// Its id.
        invite: String,
    },
}

/// `weir dht`.
#[derive(Debug, Subcommand)]
pub enum DhtCommand {
    /// Show how it stands with it: table, sessions, records of our own and of others.
    Status,
    /// Look for a member or a service, and show who was asked.
    Lookup {
        /// A name, an id, or an overlay address; or a service, as _http._tcp.site-b.
        what: String,
    },
    /// Show a record as it lies there: envelope, value, who was asked.
    Get {
        /// What it is about.
        #[arg(value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)))]
        kind: String,
        /// The name, id, overlay address or service whose record it is; or 64 hex digits, which say where it lies.
        what: String,
    },
    /// Offer our own records to those who should have them once more, now.
    Put,
}

/// `weir dns`.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Show how it stands with names: zones, what this member publishes, what was not believed.
    Status,
    /// Show the records that this member publishes.
    List,
    /// Publish a record under this member's name. It is kept over a restart.
    Set {
        /// Labels below the member's name; @ for that itself, and a * before them for all names there.
        name: String,
        /// A, AAAA, TXT, SRV, CNAME or PTR.
        rtype: String,
        /// What it says, as in a zone file.
        #[arg(required = true, num_args = 1..)]
        data: Vec<String>,
    },
    /// Publish records no more that were set.
    Unset {
        /// As they were set.
        name: String,
        /// Of which type [default: all].
        rtype: Option<String>,
        /// Which of them [default: all].
        data: Vec<String>,
    },
    /// Print the keys by which other programs verify the network's names.
    Anchor {
        /// As a configuration of unbound, with the zones sent to this gateway.
        #[arg(long, group = "form")]
        unbound: bool,
        /// As a configuration of BIND, with the zones sent to this gateway.
        #[arg(long, group = "form")]
        bind: bool,
        /// As a file for `delv -a`.
        #[arg(long, group = "form")]
        delv: bool,
        /// As files of systemd-resolved.
        #[arg(long, group = "form")]
        systemd: bool,
        /// The address at which the gateway answers [default: the one that all gateways share].
        #[arg(long, value_name = "ADDRESS")]
        server: Option<SocketAddr>,
    },
    /// Show which records of others were not believed, and why.
    Log,
}

/// `weir cert`.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Show it.
    Show,
    /// Renew it now.
    Renew,
}

/// Where a root's key comes from.
#[derive(Debug, Args)]
pub struct Root {
    /// The root's key, as `weir init` wrote it.
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// File whose first line is its passphrase [default: ask].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The trust bundle, as `weir ca bundle` or an earlier ceremony wrote it. The new version goes into this file too.
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
}

/// `weir ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Write the trust bundle into a file, to carry it to a ceremony.
    Bundle {
        /// Where to.
        file: PathBuf,
        /// Write the roots' certificates in PEM as well, for programs that are not weir.
        #[arg(long, value_name = "FILE")]
        roots: Option<PathBuf>,
    },
    /// Hand the outcome of a ceremony to the node, which spreads it.
    Publish {
        /// The trust bundle.
        file: PathBuf,
    },
    /// Make this node's issuer key, if it has none, and print it: for `add-issuer`.
    IssuerKey,
    /// Ceremony: make another node an issuer. It renews what others gave out; `move-allocator` lets it give out.
    AddIssuer {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The new issuer's public key, as `weir ca issuer-key` on it prints it.
        #[arg(long, value_name = "KEY")]
        key: String,
    },
    /// Ceremony: give an issuer a new certificate before the old one ends.
    RenewIssuer {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The issuer's key id.
        #[arg(long, value_name = "KEY-ID")]
        issuer: String,
        /// How many to sign ahead, each beginning a year after the one before.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(AHEAD_MAX)))]
        ahead: u8,
    },
    /// Ceremony: revoke an issuer for good. Nothing that it signed counts any more, revocations included; its members join anew.
    RevokeIssuer {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The issuer's key id.
        #[arg(value_name = "KEY-ID")]
        issuer: String,
        /// The key id of the issuer that gives out what it gave out [default: nobody].
        #[arg(long, value_name = "KEY-ID")]
        heir: Option<String>,
    },
    /// Ceremony: put a new root in the place of one.
    RotateRoot {
        /// The root that signs and stays.
        #[command(flatten)]
        root: Root,
        /// The key id of the root that goes.
        #[arg(long, value_name = "KEY-ID")]
        replace: String,
        /// Where to put the new root's key.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// File whose first line is the new root's passphrase [default: ask].
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Ceremony: let another issuer give out names and prefixes in place of one.
    MoveAllocator {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The key id of the issuer that gives them out now.
        #[arg(long, value_name = "KEY-ID")]
        from: String,
        /// The key id of the issuer that shall.
        #[arg(long, value_name = "KEY-ID")]
        to: String,
    },
    /// Make an operator's key, which signs policy on any host, and print its public half: for `add-operator`.
    OperatorKey {
        /// Where to put the key.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// File whose first line is the key's passphrase [default: ask].
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Ceremony: let a key sign policy.
    AddOperator {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The operator's public key, as `weir ca operator-key` prints it, or `weir ca issuer-key` on an issuer.
        #[arg(long, value_name = "KEY")]
        key: String,
    },
    /// Ceremony: let a key sign policy no more. The policy in force stays until another is signed.
    RemoveOperator {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The operator's key id.
        #[arg(value_name = "KEY-ID")]
        operator: String,
    },
    /// Make a revocation key, which cuts members off on any host while no issuer can, and print its public half: for `add-revocation-key`.
    RevocationKey {
        /// Where to put the key.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// File whose first line is the key's passphrase [default: ask].
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Ceremony: let a key that is no issuer's revoke.
    AddRevocationKey {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The public key, as `weir ca revocation-key` prints it.
        #[arg(long, value_name = "KEY")]
        key: String,
    },
    /// Ceremony: let a revocation key revoke no more. What no other list names is good again.
    RemoveRevocationKey {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// The revocation key's id.
        #[arg(value_name = "KEY-ID")]
        revoker: String,
    },
    /// Write the revocation list of one signer into a file, to be continued by `sign-revocations`.
    RevocationList {
        /// The key id of the issuer or the revocation key.
        #[arg(value_name = "KEY-ID")]
        signer: String,
        /// Where to.
        file: PathBuf,
    },
    /// Revoke with a revocation key, on any host: for `publish-revocations`. Asks no node.
    SignRevocations(SignRevocations),
    /// Hand a list that `sign-revocations` wrote to the node, which spreads it.
    PublishRevocations {
        /// The list.
        file: PathBuf,
    },
    /// Ceremony: give out more prefixes than before. All members lead them into the overlay from then on, or nowhere.
    WidenPool {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// A prefix that no issuer gives out yet; it may have some in it that this one does.
        #[arg(long, required = true, value_name = "PREFIX")]
        pool: Vec<String>,
        /// The key id of the issuer that gives them out [default: the one that gives out the rest].
        #[arg(long, value_name = "KEY-ID")]
        issuer: Option<String>,
    },
    /// Ceremony: allow the draft group X25519Kyber768Draft00 with members that a configuration names, or forbid it.
    DraftGroup {
        /// The root.
        #[command(flatten)]
        root: Root,
        /// Whether it is allowed.
        verdict: Verdict,
    },
    /// Write everything that this node's issuer keeps into a sealed file.
    Backup {
        /// Where to.
        file: PathBuf,
        /// File whose first line is the passphrase [default: ask].
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Put an issuer's backup into this node's state directory, which must hold no other issuer. The node must not run.
    Restore {
        /// The backup.
        file: PathBuf,
        /// File whose first line is the passphrase [default: ask].
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// After a restore: this issuer was told of all members, and may invite again.
    Recovered,
    /// Write revocations as X.509 lists, for programs that are not weir.
    ExportCrl {
        /// Directory for one file an issuer [default: print them].
        #[arg(long, value_name = "DIRECTORY")]
        out: Option<PathBuf>,
    },
}

/// `weir ca sign-revocations`.
#[derive(Debug, Args)]
pub struct SignRevocations {
    /// The list, as `sign-revocations` or `revocation-list` wrote it; a new one if there is no such file. What is revoked now is added to it.
    #[arg(long, value_name = "FILE")]
    pub list: PathBuf,
    /// The revocation key, as `weir ca revocation-key` made it.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// File whose first line is the key's passphrase [default: ask].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The trust bundle that names the key, as `weir ca bundle` wrote it.
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// Ids of members, as `weir members --json` shows them.
    #[arg(value_name = "NODE-ID", required_unless_present_any = ["issuer", "invite"])]
    pub node: Vec<String>,
    /// Key id of an issuer: what it certified ends with it.
    #[arg(long, value_name = "KEY-ID")]
    pub issuer: Vec<String>,
    /// Id of an invitation, as `weir invites` shows it.
    #[arg(long, value_name = "ID")]
    pub invite: Vec<String>,
    /// Why, for people.
    #[arg(long, default_value = "revoked")]
    pub reason: String,
}

/// `weir policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the policy in force, with the hits of each rule.
    Show,
    /// Read a policy and say what is wrong with it. Asks no node.
    Check {
        /// The file.
        file: PathBuf,
        /// Ask the node for the members too, and say which groups and nodes of the policy are nobody.
        #[arg(long)]
        members: bool,
    },
    /// Show what would change between the policy in force, or another file, and this one.
    Diff {
        /// The file.
        file: PathBuf,
        /// Compare with this file and ask no node.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Sign a policy with an operator's key, on any host: for `apply --signed`. Asks no node.
    Sign(Sign),
    /// Put a policy in force.
    Apply {
        /// The file.
        file: PathBuf,
        /// The file is signed already.
        #[arg(long)]
        signed: bool,
    },
    /// Show the versions of the policy.
    History,
    /// Make the rules of an earlier version those of a new one.
    Rollback {
        /// The version.
        version: u64,
    },
    /// Say what the policy does with a packet, and why.
    Explain {
        /// Its source: an address or a member's name.
        src: String,
        /// Its destination: an address or a member's name.
        dst: String,
        /// Its protocol: tcp, udp, icmp or a number.
        #[arg(long)]
        proto: Option<String>,
        /// Its destination port.
        #[arg(long)]
        port: Option<u16>,
        /// Ask about a message of this topic instead, from one member to another.
        #[arg(long, conflicts_with_all = ["proto", "port"])]
        topic: Option<String>,
    },
}

/// `weir policy sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// The file.
    pub file: PathBuf,
    /// The operator's key, as `weir ca operator-key` made it.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// File whose first line is the key's passphrase [default: ask].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The trust bundle, as `weir ca bundle` wrote it: it says for which network, and whether the key may.
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// The number of this version, above that in force: `weir policy show`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub version: u64,
    /// Where to put the signed policy.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `weir config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read it and say what is wrong with it.
    Check,
}

/// As `90s`, `30m`, `1h`, `2d`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, unit)) if !unit.is_ascii_digit() => (&text[..at], unit),
        _ => (text, 's'),
    };
    let unit_secs = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(format!("{unit:?} is no unit: write s, m, h or d")),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and s, m, h or d, as in 90s or 1h".to_owned())?;
    number
        .checked_mul(unit_secs)
        .filter(|secs| *secs > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| "choose a time that is longer than nothing and shorter than for ever".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, secs) in [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(secs)));
        }
        for text in ["", "0", "h", "1w", "-1h", "1.5h", "99999999999999999999", "999999999999999999d", "1ü"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
