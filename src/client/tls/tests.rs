//! Real handshakes between sources of an agent that says what the test tells it to. All of them run on one thread, so
//! a signature that needed that thread would never come.

mod agent;
mod delegated;
mod guard;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rustls::{AlertDescription, CertificateError, Error, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::base::clock::{Clock, ManualClock};
use crate::client::fake::{Documents, NOW, Served};
use crate::client::{ClientError, Endpoint};
use crate::id::TrustDomain;
use crate::proto::session::HeldX509;
use agent::FakeAgent;

/// An agent at a socket, with the clock of everybody who talks to it.
struct Site {
    agent: FakeAgent,
    served: Served,
    clock: Clock,
    hand: ManualClock,
}

impl Site {
    fn new() -> Self {
        let agent = FakeAgent::new();
        let served = Served::routes(agent.routes());
        let (clock, hand) = Clock::manual(NOW);
        Self { agent, served, clock, hand }
    }

    async fn source(&self, custody: Custody) -> X509Source {
        self.try_source(custody).await.expect("connected")
    }

    async fn try_source(&self, custody: Custody) -> Result<X509Source, SourceError> {
        let endpoint: Endpoint = self.served.uri().parse().expect("an endpoint");
        X509Source::connect_by(endpoint, custody, self.clock.clone()).await
    }
}

/// A site of one trust domain whose agent holds `/server` (serial 1) and `/client` (serial 2), and a source of each.
async fn two_held() -> (Site, Documents, X509Source, X509Source) {
    let (site, td) = (Site::new(), Documents::of("example.org"));
    site.agent.believe(&[&td], vec![]);
    site.agent.hold(&td, &[("/server", 1), ("/client", 2)]);
    let source = site.source(Custody::Tether).await;
    let (server, client) = (source.presenting(td.id("/server")), source.presenting(td.id("/client")));
    (site, td, server, client)
}

struct Connected {
    client: client::TlsStream<DuplexStream>,
    server: server::TlsStream<DuplexStream>,
}

/// One handshake, and one byte in each direction: in TLS 1.3 a client learns only then that it was refused.
async fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Connected, [Option<Error>; 2]> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let client = async {
        let mut stream = TlsConnector::from(client.clone()).connect(unnamed(), near).await?;
        stream.write_all(b"?").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server.clone()).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    match tokio::join!(client, server) {
        (Ok(client), Ok(server)) => Ok(Connected { client, server }),
        (client, server) => Err([of_rustls(client.err()), of_rustls(server.err())]),
    }
}

/// The TLS error in an I/O error; a connection that was just closed has none.
fn of_rustls(error: Option<io::Error>) -> Option<Error> {
    error?.into_inner()?.downcast::<Error>().ok().map(|error| *error)
}

fn refusals(outcome: Result<Connected, [Option<Error>; 2]>) -> [Option<Error>; 2] {
    outcome.err().expect("one of the two refuses")
}

fn refused(why: CertificateError, alert: AlertDescription) -> (Option<Error>, Option<Error>) {
    (Some(Error::InvalidCertificate(why)), Some(Error::AlertReceived(alert)))
}

fn configs(
    client: (&X509Source, Authorize),
    server: (&X509Source, Authorize),
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    (Arc::new(client_config(client.0, client.1)), Arc::new(server_config(server.0, server.1)))
}

fn serial_of(connection: &CommonState) -> Vec<u8> {
    let leaf = &connection.peer_certificates().expect("a peer")[0];
    Certificate::from_der(leaf).expect("a certificate").serial().as_bytes().to_vec()
}

#[tokio::test]
async fn two_programs_without_keys_prove_their_identities_to_each_other_with_a_hybrid_key_exchange() {
    let (site, td, server, client) = two_held().await;
    let (client, server) =
        configs((&client, Authorize::Id(td.id("/server"))), (&server, Authorize::Id(td.id("/client"))));
    let connected = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    for (connection, peer) in
        [(connected.client.get_ref().1 as &CommonState, "/server"), (connected.server.get_ref().1, "/client")]
    {
        assert_eq!(peer_id(connection), Some(td.id(peer)));
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = connection.negotiated_key_exchange_group().expect("one").name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
    let signed: Vec<_> = site.agent.signed().iter().map(|request| request.key.clone()).collect();
    assert_eq!(signed, ["key-1", "key-2"], "one signature for each side");
}

#[tokio::test]
async fn what_the_agent_sends_for_held_identities_has_no_private_key_in_it() {
    let (site, _, _, _) = two_held().await;
    let message = site.agent.held().encode_to_vec();
    let keys = site.agent.keys();
    assert_eq!(keys.len(), 2);
    for key in keys.values() {
        let pkcs8 = key.to_pkcs8().expect("a key");
        // PKCS#8 of P-256: 34 bytes of structure, then the private key as an octet string of 32 bytes (RFC 5915).
        let (octets, private) = (&pkcs8.expose()[34..36], &pkcs8.expose()[36..68]);
        assert_eq!(octets, [0x04, 32]);
        assert!(!message.windows(32).any(|window| window == private));
    }
}

#[tokio::test]
async fn either_custody_of_the_keys_talks_to_either() {
    let (site, td) = (Site::new(), Documents::of("example.org"));
    site.agent.believe(&[&td], vec![]);
    site.agent.hold(&td, &[("/a", 1)]);
    site.agent.give(&td, &[("/a", 2)]);
    for client in [Custody::Tether, Custody::Program] {
        for server in [Custody::Tether, Custody::Program] {
            let (client, server) = (site.source(client).await, site.source(server).await);
            let (client, server) = configs((&client, td.id("/a").into()), (&server, td.id("/a").into()));
            assert!(connect(&client, &server).await.is_ok());
        }
    }
    assert_eq!(site.agent.signed().len(), 4, "a key in the program asks nobody");
}

#[tokio::test]
async fn after_a_rotation_new_connections_have_the_new_svid_and_open_ones_go_on() {
    let (site, td, server, client) = two_held().await;
    let mut changes = server.changes();
    let (client, server) = configs((&client, Authorize::Anyone), (&server, Authorize::Anyone));
    let mut before = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    let serial = serial_of(before.client.get_ref().1);

    site.agent.hold(&td, &[("/server", 3), ("/client", 4)]);
    let state = changes.next().await.expect("the source is there");
    assert_eq!(state.identities().len(), 2);

    let after = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    assert_ne!(serial_of(after.client.get_ref().1), serial);
    let signed = site.agent.signed().iter().map(|request| request.key.clone()).collect::<Vec<_>>();
    assert_eq!(signed, ["key-1", "key-2", "key-3", "key-4"]);
    before.client.write_all(b"still here").await.expect("sent");
    let mut heard = [0; 10];
    before.server.read_exact(&mut heard).await.expect("received");
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn a_peer_that_is_not_authorised_is_refused_by_either_side_with_access_denied() {
    let (_site, td, server, client) = two_held().await;
    let other = || Authorize::Id(td.id("/other"));
    let denied = || refused(CertificateError::ApplicationVerificationFailure, AlertDescription::AccessDenied);

    let (config, server_config) = configs((&client, other()), (&server, Authorize::Anyone));
    let [by_client, at_server] = refusals(connect(&config, &server_config).await);
    assert_eq!((by_client, at_server), denied());

    for nobody in [other(), Authorize::default()] {
        let (config, server_config) = configs((&client, Authorize::Anyone), (&server, nobody));
        let [at_client, by_server] = refusals(connect(&config, &server_config).await);
        assert_eq!((by_server, at_client), denied());
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let (_site, _, server, _) = two_held().await;
    let anonymous =
        ClientConfig::builder_with_details(tls::provider(), Arc::new(tls::ClockTime(server.clock().clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect(tls::PROVIDER_IS_WHOLE)
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(&server, Authorize::Anyone)))
            .with_no_client_auth();
    let server = Arc::new(server_config(&server, Authorize::Anyone));
    let [at_client, by_server] = refusals(connect(&Arc::new(anonymous), &server).await);
    assert_eq!(by_server, Some(Error::NoCertificatesPresented));
    assert_eq!(at_client, Some(Error::AlertReceived(AlertDescription::CertificateRequired)));
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_told_that_this_version_is_not_spoken() {
    let (_site, _, server, _) = two_held().await;
    let extensions: [&[u8]; 4] = [
        &[0, 10, 0, 4, 0, 2, 0, 23], // supported_groups: P-256
        &[0, 11, 0, 2, 1, 0],        // ec_point_formats: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],  // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 23, 0, 0],              // extended_master_secret
    ];
    let extensions = extensions.concat();
    let hello = [
        &[3, 3][..],
        &[7; 32],            // random
        &[0],                // no session
        &[0, 2, 0xc0, 0x2b], // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        &[1, 0],             // no compression
        &[0, extensions.len() as u8],
        &extensions,
    ]
    .concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8], hello.as_slice()].concat();

    let mut connection =
        rustls::ServerConnection::new(Arc::new(server_config(&server, Authorize::Anyone))).expect("new");
    connection.read_tls(&mut record.as_slice()).expect("read");
    connection.process_new_packets().expect_err("refused");
    let mut answer = Vec::new();
    connection.write_tls(&mut answer).expect("written");
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::ProtocolVersion)]);
}

#[tokio::test]
async fn a_revoked_peer_is_refused_from_the_moment_the_list_says_so_and_no_session_is_resumed() {
    let (site, td, server, client) = two_held().await;
    let mut changes = server.changes();
    let (client, server) = configs((&client, Authorize::Anyone), (&server, Authorize::Anyone));
    for _ in 0..2 {
        let connected = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
        let (near, far) = (connected.client.get_ref().1, connected.server.get_ref().1);
        assert_ne!(near.handshake_kind(), Some(HandshakeKind::Resumed), "it would not look at the certificate");
        assert_ne!(far.handshake_kind(), Some(HandshakeKind::Resumed));
    }

    site.agent.believe(&[&td], vec![td.crl(&[2])]);
    assert_eq!(changes.next().await.expect("the source is there").bundles().crls.len(), 1);
    let [at_client, by_server] = refusals(connect(&client, &server).await);
    assert_eq!(
        (by_server, at_client),
        refused(CertificateError::Revoked, AlertDescription::CertificateRevoked),
        "the client is revoked"
    );

    site.agent.believe(&[&td], vec![td.crl(&[1])]);
    changes.next().await.expect("the source is there");
    let [by_client, at_server] = refusals(connect(&client, &server).await);
    assert_eq!(
        (by_client, at_server),
        refused(CertificateError::Revoked, AlertDescription::CertificateRevoked),
        "the server is revoked"
    );

    site.agent.believe(&[&td], vec![td.crl(&[])]);
    changes.next().await.expect("the source is there");
    assert!(connect(&client, &server).await.is_ok());
    site.hand.advance(Duration::from_secs(1801));
    let [by_client, _] = refusals(connect(&client, &server).await);
    assert_eq!(
        by_client,
        Some(Error::InvalidCertificate(CertificateError::ExpiredRevocationList)),
        "a list that is out of date says nothing"
    );
}

#[tokio::test]
async fn a_peer_of_another_trust_domain_is_judged_by_that_domains_bundle() {
    let (site, there) = (Site::new(), Site::new());
    let (td, partner) = (Documents::of("example.org"), Documents::of("partner.example"));
    site.agent.believe(&[&td], vec![]);
    site.agent.hold(&td, &[("/server", 1)]);
    there.agent.believe(&[&td, &partner], vec![]);
    there.agent.hold(&partner, &[("/client", 2)]);
    let (server, client) = (site.source(Custody::Tether).await, there.source(Custody::Tether).await);
    let mut changes = server.changes();
    let member = Authorize::MemberOf(TrustDomain::parse("partner.example").expect("legal"));
    let (client, server) = configs((&client, Authorize::Anyone), (&server, member));

    let [at_client, by_server] = refusals(connect(&client, &server).await);
    assert_eq!((by_server, at_client), refused(CertificateError::UnknownIssuer, AlertDescription::UnknownCA));

    // The right names with another authority's signatures: it is the bundle that decides.
    let impostor = Documents::of("partner.example");
    site.agent.believe(&[&td, &impostor], vec![]);
    changes.next().await.expect("the source is there");
    let [_, by_server] = refusals(connect(&client, &server).await);
    assert_eq!(by_server, Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)));

    site.agent.believe(&[&td, &partner], vec![]);
    changes.next().await.expect("the source is there");
    let connected = connect(&client, &server).await.map_err(|errors| format!("{errors:?}")).expect("connected");
    assert_eq!(peer_id(connected.server.get_ref().1), Some(partner.id("/client")));
}

#[tokio::test]
async fn while_the_agent_is_away_a_key_in_the_program_serves_until_its_certificate_expires_and_a_held_key_does_not() {
    let (mut site, td) = (Site::new(), Documents::of("example.org"));
    site.agent.believe(&[&td], vec![]);
    site.agent.give(&td, &[("/a", 1)]);
    site.agent.hold(&td, &[("/a", 2)]);
    let (own, held) = (site.source(Custody::Program).await, site.source(Custody::Tether).await);
    let own_configs = configs((&own, Authorize::Anyone), (&own, Authorize::Anyone));
    let held_configs = configs((&held, Authorize::Anyone), (&own, Authorize::Anyone));
    assert_eq!(own.standing(), Standing::Live);

    site.served.stop();
    for source in [&own, &held] {
        source.standing_is(|standing| *standing != Standing::Live).await;
        assert!(matches!(source.standing(), Standing::Away { since, .. } if since == NOW), "{:?}", source.standing());
        assert_eq!(source.state().identities().len(), 1, "what it has it keeps");
    }
    assert!(connect(&own_configs.0, &own_configs.1).await.is_ok());
    let [by_client, _] = refusals(connect(&held_configs.0, &held_configs.1).await);
    assert!(matches!(by_client, Some(Error::Other(_))), "{by_client:?}");

    site.served.start(site.agent.routes());
    for source in [&own, &held] {
        source.standing_is(|standing| *standing == Standing::Live).await;
    }
    assert!(connect(&held_configs.0, &held_configs.1).await.is_ok());

    site.hand.advance(Duration::from_secs(3600));
    assert!(connect(&own_configs.0, &own_configs.1).await.is_err(), "nothing that has expired is presented");
}

#[tokio::test]
async fn an_identity_that_the_agent_does_not_give_is_not_presented() {
    let (_site, td, server, client) = two_held().await;
    let absent = client.presenting(td.id("/absent"));
    let (client, server) = configs((&absent, Authorize::Anyone), (&server, Authorize::Anyone));
    let [_, by_server] = refusals(connect(&client, &server).await);
    assert_eq!(by_server, Some(Error::NoCertificatesPresented));
}

#[tokio::test]
async fn held_identities_with_anything_wrong_are_dropped_whole_and_the_ones_before_stay() {
    let (site, td, source, _) = two_held().await;
    let good = site.agent.held().svids[0].clone();
    let wrong = [
        vec![],
        vec![good.clone(), HeldX509 { key: String::new(), ..good.clone() }],
        vec![HeldX509 { spiffe_id: td.id("/other").to_string(), ..good.clone() }],
        vec![HeldX509 { spiffe_id: "no id".to_owned(), ..good.clone() }],
        vec![HeldX509 { x509_svid: td.bundle().into(), ..good.clone() }],
        vec![HeldX509 { x509_svid: b"x".as_slice().into(), ..good }],
    ];
    for svids in wrong {
        site.agent.hold_exactly(svids.clone());
        let told = |standing: &Standing| matches!(standing, Standing::Away { reason, .. } if reason.contains("used"));
        source.standing_is(told).await;
        assert_eq!(source.state().identities().len(), 2, "{svids:?}");
        site.agent.hold(&td, &[("/server", 1), ("/client", 2)]);
        source.standing_is(|standing| *standing == Standing::Live).await;
    }
}

#[tokio::test]
async fn an_agent_without_held_keys_is_no_source_for_them_and_one_that_is_away_is_waited_for() {
    let (td, agent) = (Documents::of("example.org"), FakeAgent::new());
    agent.believe(&[&td], vec![]);
    agent.give(&td, &[("/a", 1)]);
    let mut served = Served::workload_api(crate::client::fake::FakeWorkloadApi::default());
    let endpoint: Endpoint = served.uri().parse().expect("an endpoint");
    let refused = X509Source::connect(endpoint.clone(), Custody::Tether).await.err();
    let Some(SourceError::Refused(reason)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**reason, ClientError::NotOffered(_)), "{reason}");

    served.stop();
    let waiting = tokio::spawn(X509Source::connect(endpoint, Custody::Program));
    tokio::task::yield_now().await;
    served.start(agent.routes());
    let source = waiting.await.expect("not cancelled").expect("connected");
    assert_eq!(source.state().identities()[0].id(), &td.id("/a"));
}

#[test]
fn a_source_works_in_a_runtime_that_has_neither_clock_nor_sockets() {
    let (site, td) = (Site::new(), Documents::of("example.org"));
    site.agent.believe(&[&td], vec![]);
    site.agent.hold(&td, &[("/a", 1)]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let source = site.source(Custody::Tether).await;
        let (client, server) = configs((&source, Authorize::Anyone), (&source, Authorize::Anyone));
        assert!(connect(&client, &server).await.is_ok());
    });
}
