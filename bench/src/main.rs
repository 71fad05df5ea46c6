//! The command line of the bench.

mod command;

use std::fs::File;
use std::io::BufWriter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use command::{CompareArgs, ControlArgs, ProfileArgs, SimArgs};
use weir_bench::demo::{self, DemoConfig};
use weir_bench::generator::{self, Amount, Sent};
use weir_bench::micro::{self, Piece};
use weir_bench::plain::{self, PlainConfig};
use weir_bench::rig::{self, Namespace, Rig, RigConfig};
use weir_bench::sink::{Report, Sink, SinkConfig};
use weir_bench::stream::{Path, Sizes, Stream};
use weir_bench::sys::clock::{monotonic_ns, wait_until};
use weir_bench::{Error, Result, pcap, table};
use weir_dataplane::config::{Attach, WanIo};

#[derive(Parser)]
#[command(version, about = "Weir's test rig, packet generator and sink")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two gateways, a session and real traffic: show that it works
    Demo(DemoArgs),
    /// Build or clean rigs of network namespaces: h1 – g1 – g2 – h2
    #[command(subcommand)]
    Rig(RigCommand),
    /// Send a stream of stamped UDP datagrams, or write it to a file
    Gen(GenArgs),
    /// Count stamped datagrams that arrive at an interface
    Sink(SinkArgs),
    /// Measure the kernel's own forwarding on a rig
    Plain(PlainArgs),
    /// Compare Weir with the kernel and with other programs
    Compare(CompareArgs),
    /// Measure what the control plane promised: handshakes, floods, outages, changes under load, a revocation, memory, thirty
    /// gateways that find each other
    Control(ControlArgs),
    /// Simulate discovery in a large network: look-ups, churn, adversaries
    Sim(SimArgs),
    /// Sample a subject under load with perf: flame graph and busiest symbols
    Profile(ProfileArgs),
    /// Measure single pieces: AEAD, route look-up, engine, wan
    Micro {
        /// Which pieces, separated by commas; all if not given.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Piece>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct DemoArgs {
    /// Leave everything up, and say how to enter and how to stop
    #[arg(long)]
    keep: bool,
    /// Write everything that was seen to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// How the WAN classifier is attached: auto, native, generic, tc or none
    #[arg(long, default_value = "auto", value_parser = parse_attach)]
    attach: Attach,
    /// What moves datagrams: auto, uring or mmsg
    #[arg(long, default_value = "auto", value_parser = parse_io)]
    io: WanIo,
    /// Seconds of each TCP transfer and generator run
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Measure the kernel's own forwarding on the same rig too
    #[arg(long)]
    yardstick: bool,
}

#[derive(Subcommand)]
enum RigCommand {
    /// Build a rig and hold it until interrupted
    Up(UpArgs),
    /// Remove the namespaces of rigs whose process is gone
    Clean,
}

#[derive(Args)]
struct UpArgs {
    /// Leave the rig standing and return
    #[arg(long)]
    keep: bool,
    /// Let the gateways route between the LANs themselves
    #[arg(long)]
    plain: bool,
    /// MTU of the LANs in bytes
    #[arg(long, default_value_t = 1500)]
    lan_mtu: u32,
    /// MTU of the link between the gateways in bytes
    #[arg(long, default_value_t = 1500)]
    wan_mtu: u32,
    /// Queues of each interface
    #[arg(long, default_value_t = 2)]
    queues: u32,
    /// Switch on rx-udp-gro-forwarding on the gateways' LAN interfaces
    #[arg(long)]
    udp_gro_forwarding: bool,
}

#[derive(Args)]
struct GenArgs {
    /// Named network namespace to send in; this one if not given
    #[arg(long)]
    netns: Option<String>,
    /// Interface to send on; not needed for a file when all addresses are given
    #[arg(long, short, required_unless_present_all = ["source", "source_mac", "next_hop_mac", "pcap"])]
    interface: Option<String>,
    /// Destination address
    #[arg(long)]
    to: IpAddr,
    /// Source address; what the kernel would choose if not given
    #[arg(long)]
    source: Option<IpAddr>,
    /// Source link-layer address; that of the interface if not given
    #[arg(long, value_parser = parse_mac)]
    source_mac: Option<[u8; 6]>,
    /// Link-layer address of the next hop; asked for on the link if not given
    #[arg(long, value_parser = parse_mac)]
    next_hop_mac: Option<[u8; 6]>,
    /// Frame size in bytes with FCS (64 to 1518), or imix
    #[arg(long, default_value = "64")]
    size: Sizes,
    /// Number of flows
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// First source port
    #[arg(long, default_value_t = 20_000)]
    source_port: u16,
    /// Destination port
    #[arg(long, default_value_t = 9)]
    port: u16,
    /// Frames per second by AF_XDP; flat out from the kernel if not given
    #[arg(long, value_parser = parse_rate)]
    rate: Option<f64>,
    /// Stop after this many frames instead of after a duration
    #[arg(long)]
    frames: Option<u64>,
    /// Stop after this many seconds
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    duration: f64,
    /// Write the stream to this file instead of sending it (microsecond pcap; --frames of it, spaced by --rate)
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SinkArgs {
    /// Named network namespace to count in; this one if not given
    #[arg(long)]
    netns: Option<String>,
    /// Interface to count on
    #[arg(long, short)]
    interface: String,
    /// Seconds to count for
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    duration: f64,
    /// Let counted datagrams go on to the stack
    #[arg(long)]
    pass: bool,
    /// Read the stamp of every datagram inside a merged packet
    #[arg(long)]
    every_segment: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct PlainArgs {
    /// Seconds of the TCP transfer and of each generator run
    #[arg(long, default_value_t = 3.0, value_parser = parse_seconds)]
    duration: f64,
    /// Frame size in bytes with FCS (64 to 1518), or imix
    #[arg(long, default_value = "64")]
    size: Sizes,
    /// Number of flows
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Switch on rx-udp-gro-forwarding on the gateways' LAN interfaces
    #[arg(long)]
    udp_gro_forwarding: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn parse_mac(text: &str) -> std::result::Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|b| if b.len() == 2 { u8::from_str_radix(b, 16).ok() } else { None }).collect();
    bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| "six bytes in hexadecimal with colons are needed".to_owned())
}

/// A year is longer than any run, and keeps the arithmetic of deadlines far from its limits.
fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.001..=31_536_000.0).contains(s));
    seconds.ok_or_else(|| "a number of seconds of at least 0.001 is needed".to_owned())
}

fn parse_attach(text: &str) -> std::result::Result<Attach, String> {
    let all = [Attach::Auto, Attach::Native, Attach::Generic, Attach::Tc, Attach::None];
    parse_word(text, &all)
}

fn parse_io(text: &str) -> std::result::Result<WanIo, String> {
    parse_word(text, &[WanIo::Auto, WanIo::Uring, WanIo::Mmsg])
}

/// Finds the value that the daemon's configuration writes as `text`.
fn parse_word<T: Copy + serde::Serialize>(text: &str, all: &[T]) -> std::result::Result<T, String> {
    let found = all.iter().find(|value| serde_json::to_value(value).is_ok_and(|word| word == text));
    found.copied().ok_or_else(|| {
        let words: Vec<_> = all.iter().filter_map(|value| serde_json::to_string(value).ok()).collect();
        format!("one of {} is needed", words.join(", "))
    })
}

fn parse_rate(text: &str) -> std::result::Result<f64, String> {
    let rate = text.parse().ok().filter(|r| (1.0..=1e9).contains(r));
    rate.ok_or_else(|| "a number of frames per second between 1 and 1e9 is needed".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = rig::guard_process().and_then(|()| match cli.command {
        Command::Demo(args) => done(demonstrate(&args)),
        Command::Rig(RigCommand::Up(args)) => done(rig_up(&args)),
        Command::Rig(RigCommand::Clean) => done(rig_clean()),
        Command::Gen(args) => done(generate(&args)),
        Command::Sink(args) => done(count(&args)),
        Command::Plain(args) => done(measure_plain(&args)),
        Command::Compare(args) => args.run(),
        Command::Control(args) => args.run(),
        Command::Sim(args) => args.run(),
        Command::Profile(args) => done(args.run()),
        Command::Micro { only, json } => done(measure_pieces(&only, json)),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_pieces(only: &[Piece], json: bool) -> Result<()> {
    let pieces = if only.is_empty() { &Piece::ALL } else { only };
    let figures = micro::run(pieces, |next| eprintln!("… {next}"))?;
    if json {
        print_json(&figures);
    } else {
        print!("{}", micro::render(&figures));
    }
    Ok(())
}

fn demonstrate(args: &DemoArgs) -> Result<()> {
    let config = DemoConfig {
        attach: args.attach,
        io: args.io,
        duration: Duration::from_secs_f64(args.seconds),
        yardstick: args.yardstick,
        keep: args.keep,
    };
    // Opened first: a minute of traffic for a file that cannot be written helps nobody.
    let failed = |file: &PathBuf| {
        let what = format!("cannot write {}", file.display());
        move |source| Error::Io { what, source }
    };
    let file = args.json.as_ref().map(|path| File::create(path).map_err(failed(path))).transpose()?;
    let demo = demo::run(&config, |step| println!("… {step}"))?;
    print!("\n{}", demo.tables());
    if let (Some(file), Some(path)) = (file, &args.json) {
        serde_json::to_writer_pretty(BufWriter::new(file), &demo).map_err(|error| failed(path)(error.into()))?;
        println!("\nwritten to {}", path.display());
    }
    if let Some(left) = &demo.left {
        println!("\nLeft standing. Enter with:");
        left.enter.iter().for_each(|line| println!("  {line}"));
        println!("API sockets: {}\nStop with:\n  {}", left.sockets.join(" "), left.stop);
    }
    Ok(())
}

fn rig_up(args: &UpArgs) -> Result<()> {
    let config = RigConfig {
        lan_mtu: args.lan_mtu,
        wan_mtu: args.wan_mtu,
        queues: args.queues,
        plain: args.plain,
        udp_gro_forwarding: args.udp_gro_forwarding,
        ..RigConfig::default()
    };
    let rig = Rig::new(config)?;
    let mut rows = Vec::new();
    for host in rig.hosts() {
        for interface in [Some(host.lan), host.wan].into_iter().flatten() {
            let enter = format!("ip netns exec {} bash", host.name());
            rows.push([interface.name.to_owned(), interface.v4.to_string(), interface.v6.to_string(), enter]);
        }
    }
    print_table(&["interface", "IPv4", "IPv6", "enter with"], &rows);
    if args.keep {
        rig.keep();
        println!("Left standing. `weir-bench rig clean` removes it.");
        return Ok(());
    }
    println!("Ctrl-C removes it.");
    loop {
        // The guard of the process ends it.
        std::thread::park();
    }
}

fn rig_clean() -> Result<()> {
    let removed = rig::clean()?;
    match removed.len() {
        0 => println!("Nothing was left over."),
        _ => removed.iter().for_each(|name| println!("removed {name}")),
    }
    Ok(())
}

fn namespace(name: Option<&str>) -> Result<Namespace> {
    name.map_or_else(Namespace::current, Namespace::open)
}

fn generate(args: &GenArgs) -> Result<()> {
    let path = match (args.source, args.source_mac, args.next_hop_mac, &args.interface) {
        (Some(source), Some(source_mac), Some(next_hop_mac), _) => {
            Path { source_mac, next_hop_mac, source, destination: args.to }
        }
        (source, source_mac, next_hop_mac, Some(interface)) => {
            let found = namespace(args.netns.as_deref())?.resolve(interface, args.to)?;
            Path {
                source: source.unwrap_or(found.source),
                source_mac: source_mac.unwrap_or(found.source_mac),
                next_hop_mac: next_hop_mac.unwrap_or(found.next_hop_mac),
                destination: args.to,
            }
        }
        _ => unreachable!("clap requires the interface unless all addresses are given"),
    };
    let stream = Stream {
        path,
        flows: args.flows,
        sizes: args.size,
        source_port: args.source_port,
        destination_port: args.port,
    };
    let duration = Duration::from_secs_f64(args.duration);
    let amount = args.frames.map_or(Amount::Duration(duration), Amount::Frames);
    if let Some(file) = &args.pcap {
        let rate = args.rate.unwrap_or(1e6);
        let count = args.frames.unwrap_or((args.duration * rate) as u64);
        let failed = |source| Error::Io { what: format!("cannot write {}", file.display()), source };
        let writer = BufWriter::new(File::create(file).map_err(failed)?);
        pcap::write(&stream.compile()?, count, rate, writer).map_err(failed)?;
        println!("{count} frames (size {}, flows {}) written to {}", stream.sizes, stream.flows, file.display());
        return Ok(());
    }
    let (namespace, interface) = (namespace(args.netns.as_deref())?, args.interface.as_deref().unwrap_or_default());
    let sent = match args.rate {
        Some(rate) => generator::pace(&namespace, interface, &stream, rate, amount)?,
        None => generator::flood(&namespace, interface, &stream, amount)?,
    };
    if args.json {
        print_json(&sent);
    } else {
        let cells = [
            sent.frames.to_string(),
            sent.bytes.to_string(),
            format!("{:.3}", sent.elapsed_ns as f64 / 1e9),
            format!("{:.3}", sent.pps() / 1e6),
            format!("{:.1}", sent.late_max_ns as f64 / 1e3),
        ];
        print_table(&["frames", "bytes", "seconds", "Mpps", "latest burst µs"], &[cells]);
    }
    Ok(())
}

fn count(args: &SinkArgs) -> Result<()> {
    let config = SinkConfig { pass: args.pass, every_segment: args.every_segment };
    let sink = Sink::attach(&namespace(args.netns.as_deref())?, &args.interface, config)?;
    wait_until(monotonic_ns() + (args.duration * 1e9) as u64);
    let tally = sink.read()?;
    // The sink does not know what was sent; what it can tell is what is missing below the last of each flow.
    let seen = Sent { frames: tally.datagrams + tally.gaps, elapsed_ns: tally.elapsed_ns, ..Sent::default() };
    let report = Report::new(&seen, &tally);
    if args.json {
        print_json(&report);
    } else {
        print_table(&Report::HEADINGS, &[report.row()]);
    }
    Ok(())
}

fn measure_plain(args: &PlainArgs) -> Result<()> {
    let config = PlainConfig {
        duration: Duration::from_secs_f64(args.duration),
        sizes: args.size,
        flows: args.flows,
        udp_gro_forwarding: args.udp_gro_forwarding,
    };
    let plain = plain::measure(&config)?;
    if args.json {
        print_json(&plain);
        return Ok(());
    }
    let ping = |p: weir_bench::external::Ping| {
        format!(
            "{} of {}, {}",
            p.received,
            p.sent,
            p.mean_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0} µs"))
        )
    };
    let rows = [
        ["ping IPv4".to_owned(), ping(plain.ping_v4)],
        ["ping IPv6".to_owned(), ping(plain.ping_v6)],
        ["TCP, one stream".to_owned(), format!("{:.2} Gbit/s, {} retransmits", plain.tcp.gbps, plain.tcp.retransmits)],
    ];
    print_table(&["plain forwarding", "result"], &rows);
    println!();
    let rows = [("flat out".to_owned(), plain.flood), (format!("paced, {:.3} Mpps", plain.paced_at_mpps), plain.paced)]
        .map(|(what, report)| {
            let mut row = vec![format!("{what}, {} B, {} flows", args.size, args.flows)];
            row.extend(report.row());
            row
        });
    let headings: Vec<_> = ["generator"].into_iter().chain(Report::HEADINGS).collect();
    print_table(&headings, &rows);
    Ok(())
}

fn print_json(value: &impl serde::Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("structs of numbers and strings always serialise"));
}

fn print_table<R: AsRef<[String]>>(headings: &[&str], rows: &[R]) {
    print!("{}", table::render(headings, rows));
}
