//! OpenSSL dials the TLS that our accepted links have, over TCP, and says what was agreed on.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustls::{Error, ServerConnection};

use super::world::{World, identity};
use crate::quic::config::server_tls;
use crate::quic::{Alpn, GROUP_X25519MLKEM768};

/// How long a judge may take to dial.
const PATIENCE: Duration = Duration::from_secs(20);

/// Accepts one connection of a judge that is told the port; what the server made of it, the negotiated group, and what the judge said.
fn judged(command: impl FnOnce(u16) -> Command) -> (Result<(), Error>, Option<u16>, Output) {
    let world = World::new(1);
    let trust = world.nodes[0].trust.clone().unwrap();
    let mut server = ServerConnection::new(server_tls(&trust, &identity(&world.network, 0))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = command(listener.local_addr().unwrap().port());
    let judge = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let judge = judge.unwrap_or_else(|error| panic!("{command:?}: {error}; cargo xtask test installs it"));
    let mut stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let shaken = shake_hands(&mut server, &mut stream);
    let group = server.negotiated_key_exchange_group().map(|group| u16::from(group.name()));
    drop(stream);
    (shaken, group, judge.wait_with_output().unwrap())
}

fn shake_hands(server: &mut ServerConnection, stream: &mut TcpStream) -> Result<(), Error> {
    while server.is_handshaking() {
        assert!(server.read_tls(stream).unwrap() > 0, "the judge went away");
        let processed = server.process_new_packets();
        while server.wants_write() {
            server.write_tls(stream).unwrap();
        }
        processed?;
    }
    server.send_close_notify();
    server.write_tls(stream).unwrap();
    // Until the judge has hung up, so that what was said reaches it.
    let _ = stream.read(&mut [0; 1024]);
    Ok(())
}

#[test]
fn openssl_with_a_classical_group_only_is_refused() {
    for group in ["X25519", "P-256"] {
        let (shaken, agreed, judge) = judged(|port| {
            let mut openssl = Command::new("openssl");
            let alpn = str::from_utf8(Alpn::Join.wire()).unwrap();
            openssl.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-tls1_3", "-groups", group]);
            openssl.args(["-alpn", alpn, "-ign_eof"]);
            openssl
        });
        let said = String::from_utf8_lossy(&judge.stderr);
        assert!(matches!(shaken, Err(Error::PeerIncompatible(_))) && agreed.is_none(), "{shaken:?}");
        assert!(said.contains("alert handshake failure"), "{group}: {said}");
    }
}

/// Any newer OpenSSL offers the hybrid and a classical group beside it; Python's bindings carry one, since few systems have it yet.
#[test]
#[ignore = "needs a Python with pyOpenSSL over OpenSSL 3.5 or later, named by JUDGE_PYTHON"]
fn openssl_agrees_on_the_hybrid_group() {
    let Some(python) = std::env::var_os("JUDGE_PYTHON") else {
        eprintln!("SKIPPED: no JUDGE_PYTHON with pyOpenSSL; `cargo xtask test --full` makes one");
        return;
    };
    let script = "import socket, sys\n\
                  from OpenSSL import SSL\n\
                  context = SSL.Context(SSL.TLS_CLIENT_METHOD)\n\
                  context.set_alpn_protos([sys.argv[2].encode()])\n\
                  connection = SSL.Connection(context, socket.create_connection(('127.0.0.1', int(sys.argv[1]))))\n\
                  connection.set_connect_state()\n\
                  connection.do_handshake()\n\
                  print(connection.get_group_name(), connection.get_cipher_name(), connection.get_protocol_version_name())\n\
                  print(connection.get_alpn_proto_negotiated().decode())\n";
    let alpn = str::from_utf8(Alpn::Join.wire()).unwrap();
    let (shaken, agreed, judge) = judged(|port| {
        let mut judge = Command::new(python);
        judge.args(["-c", script, &port.to_string(), alpn]);
        judge
    });
    let (said, complaint) = (String::from_utf8_lossy(&judge.stdout), String::from_utf8_lossy(&judge.stderr));
    assert_eq!((shaken, agreed), (Ok(()), Some(GROUP_X25519MLKEM768)), "{said}{complaint}");
    assert_eq!(said, format!("X25519MLKEM768 TLS_AES_256_GCM_SHA384 TLSv1.3\n{alpn}\n"), "{complaint}");
}
