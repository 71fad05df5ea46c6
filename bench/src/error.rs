//! One error type: everything here is set-up by an operator, and each message says what failed and what to do.

use std::io;

/// A result of the bench.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the bench could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces and eBPF need privileges.
    #[error("this needs root, for network namespaces and eBPF programs: run it with sudo")]
    NotRoot,
    /// There is no namespace of that name.
    #[error("no network namespace {name} in /run/netns: `ip netns list` shows what there is")]
    NoNamespace {
        /// The name asked for.
        name: String,
    },
    /// There is no interface of that name.
    #[error("no interface {interface} in namespace {namespace}: `ip -n {namespace} link` shows what there is")]
    NoInterface {
        /// The name asked for.
        interface: String,
        /// The namespace looked in.
        namespace: String,
    },
    /// The stream cannot be built.
    #[error("{0}")]
    Stream(#[from] crate::stream::StreamError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The errno.
        source: io::Error,
    },
    /// The kernel refused a program, map or attachment.
    #[error("{what}: {source}")]
    Bpf {
        /// What was attempted.
        what: String,
        /// Aya's error, with the verifier's log where there is one.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody answers for the next hop's address.
    #[error("no link-layer address for {next_hop} on {interface}: is the neighbour up?")]
    NoNeighbour {
        /// The next hop.
        next_hop: std::net::IpAddr,
        /// The interface asked on.
        interface: String,
    },
    /// There is no route to the destination, or it leaves by another interface.
    #[error("no route to {destination} by {interface}")]
    NoRoute {
        /// The destination.
        destination: std::net::IpAddr,
        /// The interface asked for.
        interface: String,
    },
    /// A program that measures is not installed.
    #[error("{program} is not installed: it is in Debian's package {package}")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// Its package.
        package: &'static str,
    },
    /// A program that measures failed.
    #[error("{program} failed: {detail}")]
    ProgramFailed {
        /// The program.
        program: &'static str,
        /// What it said.
        detail: String,
    },
    /// The packet plane's program is nowhere to be found.
    #[error(
        "weir-dataplane is not beside this program: build it with `cargo build -p weir-dataplane`, or name it in WEIR_DATAPLANE"
    )]
    NoDataplane,
    /// A packet plane did not start.
    #[error("the packet plane of {gateway} {how}: {said}")]
    GatewayStart {
        /// The namespace that it was started in.
        gateway: String,
        /// What became of the process.
        how: String,
        /// What it wrote.
        said: String,
    },
    /// A packet plane did not end when it was told to.
    #[error("the packet plane of {gateway} did not end in time and was killed: {said}")]
    GatewayStop {
        /// The namespace that it ran in.
        gateway: String,
        /// What it wrote.
        said: String,
    },
    /// A packet plane is asked for something while it does not run.
    #[error("the packet plane of {gateway} is not running")]
    GatewayGone {
        /// The namespace that it ran in.
        gateway: String,
    },
    /// A packet plane refused or did not answer.
    #[error(transparent)]
    Api(#[from] weir_dataplane::api::ClientError),
    /// Something that must work did not.
    #[error("{what} did not work: {detail}")]
    Broken {
        /// What was tried.
        what: String,
        /// What was seen.
        detail: String,
    },
    /// The transmitter made no progress.
    #[error("{interface} took no frame for a second: is it up, and does its peer exist?")]
    Stalled {
        /// The interface.
        interface: String,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn bpf<E: std::error::Error + Send + Sync + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Bpf { what, source: Box::new(source) }
    }
}
