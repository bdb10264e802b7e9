use super::*;

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::PrivateKeyDer;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};

const SUITES: [SupportedCipherSuite; 3] = [
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
];

static SERVER: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    Arc::new(server)
});

/// A session whose server is rustls; its tickets wait to be sent.
fn establish(suite: SupportedCipherSuite) -> (Records, ServerConnection) {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..ring::default_provider()
    });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Trusting(provider)));
    let mut client =
        UnbufferedClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&SERVER)).unwrap();
    let mut inbound = Vec::new();
    loop {
        let UnbufferedStatus { discard, state, .. } = client.process_tls_records(&mut inbound);
        let mut wants_bytes = false;
        let mut is_done = false;
        match state.unwrap() {
            ConnectionState::EncodeTlsData(mut message) => {
                let mut encoded = vec![0; 32 << 10];
                let n = message.encode(&mut encoded).unwrap();
                feed(&mut server, &encoded[..n]).unwrap();
            }
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::BlockedHandshake => wants_bytes = true,
            ConnectionState::WriteTraffic(_) => is_done = true,
            other => panic!("{other:?}"),
        }
        inbound.drain(..discard);
        if wants_bytes {
            inbound.extend(written(&mut server));
        }
        if is_done {
            break;
        }
    }
    assert!(inbound.is_empty() && !server.is_handshaking());
    let (secrets, kernel) = client.dangerous_into_kernel_connection().unwrap();
    (Records::new(secrets, kernel).unwrap(), server)
}

/// Certificates are tested elsewhere.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("the sessions are of TLS 1.3")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn feed(server: &mut ServerConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets()?;
    }
    Ok(())
}

fn written(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn write(server: &mut ServerConnection, payload: &[u8]) -> Vec<u8> {
    server.set_buffer_limit(None);
    server.writer().write_all(payload).unwrap();
    written(server)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// What the client makes of what arrives: the payload, and its answers.
#[derive(Default)]
struct Seen {
    payload: Vec<u8>,
    rest: Vec<u8>,
    out: Vec<u8>,
}

impl Seen {
    /// Receives behind the rest of what came before, `gap` bytes from where the payload belongs.
    fn receive(&mut self, records: &mut Records, bytes: &[u8], gap: usize) {
        let mut buffer = vec![0xee; gap];
        buffer.extend_from_slice(&self.rest);
        buffer.extend_from_slice(bytes);
        let Progress { filled, used } = records.open(&mut buffer, 0, gap, &mut self.out);
        assert!(filled <= used);
        self.payload.extend_from_slice(&buffer[..filled]);
        self.rest = buffer[used..].to_vec();
    }

    fn all(records: &mut Records, bytes: &[u8]) -> Self {
        let mut seen = Self::default();
        seen.receive(records, bytes, 0);
        seen
    }
}

/// The server still understands the client.
fn assert_heard(records: &mut Records, server: &mut ServerConnection, seen: &mut Seen) {
    let request = pattern(40_000);
    records.seal(&request, &mut seen.out).unwrap();
    let mut bytes = &std::mem::take(&mut seen.out)[..];
    let mut heard = Vec::new();
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets().unwrap();
        // It says that it would block, where a socket would.
        let _ = server.reader().read_to_end(&mut heard);
    }
    assert!(heard == request);
}

fn reason(records: &Records) -> &Broken {
    match records.end() {
        Some(End::Broken(broken)) => broken,
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Write(usize),
    UpdateKeys,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0..50_000usize).prop_map(Deed::Write),
        2 => prop_oneof![Just(1), Just(16_383), Just(16_384), Just(16_385)].prop_map(Deed::Write),
        1 => Just(Deed::UpdateKeys),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_rustls_sends_arrives_however_it_is_cut(
        suite in 0..SUITES.len(),
        deeds in vec(deed(), 1..8),
        cuts in vec(prop_oneof![1..40usize, 1..60_000usize], 1..20),
        gap in 0..100usize,
    ) {
        let (mut records, mut server) = establish(SUITES[suite]);
        let (mut sent, mut payload) = (written(&mut server), Vec::new());
        for deed in deeds {
            match deed {
                Deed::Write(len) => {
                    sent.extend(write(&mut server, &pattern(len)));
                    payload.extend(pattern(len));
                }
                Deed::UpdateKeys => {
                    server.refresh_traffic_keys().unwrap();
                    sent.extend(written(&mut server));
                }
            }
        }
        let mut seen = Seen::default();
        let mut rest = &sent[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            // Single bytes all the way would be slow; the fronts of records get enough of them.
            let cut = (*cut).max(sent.len() / 100).min(rest.len());
            seen.receive(&mut records, &rest[..cut], gap);
            rest = &rest[cut..];
        }
        prop_assert_eq!(records.end(), None);
        prop_assert!(seen.rest.is_empty() && seen.payload == payload);
        assert_heard(&mut records, &mut server, &mut seen);
        server.send_close_notify();
        seen.receive(&mut records, &written(&mut server), gap);
        prop_assert_eq!(records.end(), Some(&End::Closed));
    }

    #[test]
    fn a_changed_bit_ends_the_session(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let (mut records, mut server) = establish(SUITES[0]);
        let mut seen = Seen::all(&mut records, &written(&mut server));
        let first = write(&mut server, b"first");
        let mut second = write(&mut server, &pattern(1000));
        // Not in the length: a longer record is one that has not come to its end. Nor in the version, which says
        // nothing, but is sealed like the rest of the header.
        let at = Some(at.index(second.len())).filter(|at| !(3..5).contains(at)).unwrap_or(0);
        second[at] ^= 1 << bit;
        let third = write(&mut server, b"third");
        let fourth = write(&mut server, b"fourth");
        seen.receive(&mut records, &[first, second, third].concat(), 0);
        prop_assert_eq!(&seen.payload[..], b"first");
        let wanted = if at == 0 { UNEXPECTED_MESSAGE } else { BAD_RECORD_MAC };
        prop_assert_eq!(reason(&records).alert, Some(wanted));
        let told = feed(&mut server, &seen.out).unwrap_err();
        prop_assert!(matches!(told, rustls::Error::AlertReceived(_)), "{:?}", told);
        seen.receive(&mut records, &fourth, 0);
        prop_assert_eq!(&seen.payload[..], b"first");
    }
}

#[test]
fn a_record_that_is_repeated_or_left_out_ends_the_session() {
    for leave_out in [false, true] {
        let (mut records, mut server) = establish(SUITES[0]);
        let mut seen = Seen::all(&mut records, &written(&mut server));
        let first = write(&mut server, b"first");
        let second = write(&mut server, b"second");
        if leave_out {
            seen.receive(&mut records, &second, 0);
            assert_eq!(seen.payload, b"");
        } else {
            seen.receive(&mut records, &first, 0);
            seen.receive(&mut records, &first, 0);
            assert_eq!(seen.payload, b"first");
        }
        assert_eq!(reason(&records).alert, Some(BAD_RECORD_MAC));
    }
}

#[test]
fn the_key_is_replaced_before_its_limit() {
    let (mut records, mut server) = establish(SUITES[0]);
    let mut seen = Seen::all(&mut records, &written(&mut server));
    records.send_limit = 2;
    for _ in 0..5 {
        assert_heard(&mut records, &mut server, &mut seen);
    }
    assert!(records.send.sequence <= 2, "{}", records.send.sequence);
}

#[test]
fn key_updates_that_pile_up_get_one_answer() {
    let (mut records, mut server) = establish(SUITES[0]);
    let mut seen = Seen::all(&mut records, &written(&mut server));
    for _ in 0..3 {
        server.refresh_traffic_keys().unwrap();
    }
    seen.receive(&mut records, &written(&mut server), 0);
    // It waits for the next request.
    assert!(seen.out.is_empty());
    records.seal(b"request", &mut seen.out).unwrap();
    let update = HEADER_BYTES + MESSAGE_HEADER_BYTES + 1 + 1 + TAG_BYTES;
    let request = HEADER_BYTES + b"request".len() + 1 + TAG_BYTES;
    assert_eq!(seen.out.len(), update + request);
    feed(&mut server, &std::mem::take(&mut seen.out)).unwrap();
    let mut heard = [0; 7];
    server.reader().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"request");
    assert_heard(&mut records, &mut server, &mut seen);
}

/// A server that seals what it likes.
struct Forger {
    records: Records,
    keys: Keys,
}

impl Forger {
    fn new() -> Self {
        let (mut records, mut server) = establish(SUITES[0]);
        Seen::all(&mut records, &written(&mut server));
        let secrets = server.dangerous_extract_secrets().unwrap();
        Self {
            records,
            keys: Keys::new(secrets.tx).unwrap(),
        }
    }

    fn send(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.keys.seal(kind, content, &mut sealed).unwrap();
        Seen::all(&mut self.records, &sealed).payload
    }

    fn send_padded(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let zeros = vec![0; padding - 1];
        self.send(0, &[content, &[kind], &zeros].concat())
    }

    fn is_open(&mut self) -> bool {
        self.records.end().is_none() && self.send(PAYLOAD, b"open") == b"open"
    }
}

#[test]
fn padding_is_taken_off() {
    let mut forger = Forger::new();
    for (content, padding) in [
        (&b""[..], 1),
        (b"x", 1),
        (b"\0\0", 300),
        (&pattern(16_000), 384),
    ] {
        assert!(forger.send_padded(PAYLOAD, content, padding) == content);
    }
    assert_eq!(forger.send(PAYLOAD, b""), b"");
    assert!(forger.send(PAYLOAD, &pattern(16_384)) == pattern(16_384));
    assert!(forger.is_open());
}

/// A ticket of one byte, for a minute.
const TICKET: [u8; 19] = [
    NEW_SESSION_TICKET,
    0,
    0,
    15,
    0,
    0,
    0,
    60,
    0,
    0,
    0,
    0,
    1,
    7,
    0,
    1,
    9,
    0,
    0,
];

#[test]
fn handshake_messages_may_be_split_and_joined() {
    let mut forger = Forger::new();
    for at in 1..TICKET.len() {
        forger.send(HANDSHAKE, &TICKET[..at]);
        forger.send(HANDSHAKE, &TICKET[at..]);
        assert!(forger.is_open(), "{at}");
    }
    forger.send(HANDSHAKE, &[TICKET, TICKET].concat());
    assert!(forger.is_open());
    forger.send(ALERT, &[1, USER_CANCELED]);
    assert!(forger.is_open());
}

#[test]
fn what_must_not_come_ends_the_session() {
    let cases: [(&str, u8, &[u8], Option<u8>); 13] = [
        ("no type", 0, &[0; 20], Some(UNEXPECTED_MESSAGE)),
        ("change cipher spec", 20, &[1], Some(UNEXPECTED_MESSAGE)),
        ("another type", 99, b"x", Some(UNEXPECTED_MESSAGE)),
        (
            "an empty handshake",
            HANDSHAKE,
            b"",
            Some(UNEXPECTED_MESSAGE),
        ),
        (
            "a client's message",
            HANDSHAKE,
            &[1, 0, 0, 0],
            Some(UNEXPECTED_MESSAGE),
        ),
        (
            "an endless message",
            HANDSHAKE,
            &[4, 1, 0, 0],
            Some(DECODE_ERROR),
        ),
        (
            "a bad ticket",
            HANDSHAKE,
            &[4, 0, 0, 1, 7],
            Some(DECODE_ERROR),
        ),
        (
            "a key update of no kind",
            HANDSHAKE,
            &[24, 0, 0, 1, 2],
            Some(ILLEGAL_PARAMETER),
        ),
        (
            "a key update without kind",
            HANDSHAKE,
            &[24, 0, 0, 0],
            Some(DECODE_ERROR),
        ),
        (
            "a key update amid",
            HANDSHAKE,
            &[24, 0, 0, 1, 0, 4],
            Some(UNEXPECTED_MESSAGE),
        ),
        ("half an alert", ALERT, &[1], Some(DECODE_ERROR)),
        ("two alerts", ALERT, &[1, 0, 1, 0], Some(DECODE_ERROR)),
        ("a fatal alert", ALERT, &[2, 80], None),
    ];
    for (name, kind, content, alert) in cases {
        let mut forger = Forger::new();
        forger.send(kind, content);
        assert_eq!(reason(&forger.records).alert, alert, "{name}");
        assert_eq!(forger.send(PAYLOAD, b"more"), b"", "{name}");
    }
    for header in [
        [PAYLOAD, 3, 3, 0x41, 0x01],
        [PAYLOAD, 3, 3, 0, 16],
        [ALERT, 3, 3, 0, 2],
        [PAYLOAD, 3, 3, 0xff, 0xff],
    ] {
        let mut forger = Forger::new();
        Seen::all(&mut forger.records, &header);
        assert!(reason(&forger.records).alert.is_some(), "{header:?}");
    }
}

#[test]
fn a_record_whose_content_is_too_long_ends_the_session() {
    let mut forger = Forger::new();
    let long = vec![1; MAX_PAYLOAD_BYTES + 1];
    let mut sealed = Vec::new();
    forger.keys.seal(PAYLOAD, &long, &mut sealed).unwrap();
    assert_eq!(Seen::all(&mut forger.records, &sealed).payload, b"");
    assert_eq!(reason(&forger.records).alert, Some(RECORD_OVERFLOW));
}

#[test]
fn a_message_that_is_not_finished_is_not_interrupted() {
    let mut forger = Forger::new();
    forger.send(HANDSHAKE, &TICKET[..5]);
    assert_eq!(forger.send(PAYLOAD, b"now"), b"");
    assert_eq!(reason(&forger.records).alert, Some(UNEXPECTED_MESSAGE));
}

#[test]
fn nothing_counts_after_the_end() {
    let mut forger = Forger::new();
    let mut sealed = Vec::new();
    forger.keys.seal(PAYLOAD, b"last", &mut sealed).unwrap();
    forger
        .keys
        .seal(ALERT, &[1, CLOSE_NOTIFY], &mut sealed)
        .unwrap();
    forger.keys.seal(PAYLOAD, b"more", &mut sealed).unwrap();
    assert_eq!(Seen::all(&mut forger.records, &sealed).payload, b"last");
    assert_eq!(forger.records.end(), Some(&End::Closed));
}

#[test]
fn keys_are_not_updated_for_ever() {
    let (mut records, mut server) = establish(SUITES[0]);
    let mut seen = Seen::all(&mut records, &written(&mut server));
    let mut updates = |times: u32, server: &mut ServerConnection, records: &mut Records| {
        for _ in 0..times {
            server.refresh_traffic_keys().unwrap();
            seen.receive(records, &written(server), 0);
        }
    };
    updates(MAX_KEY_UPDATES, &mut server, &mut records);
    // A byte of payload makes them innocent.
    let sealed = write(&mut server, b"x");
    assert_eq!(Seen::all(&mut records, &sealed).payload, b"x");
    updates(MAX_KEY_UPDATES, &mut server, &mut records);
    assert_eq!(records.end(), None);
    updates(1, &mut server, &mut records);
    assert_eq!(reason(&records).alert, Some(UNEXPECTED_MESSAGE));
}
