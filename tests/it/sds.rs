//! Secrets as Envoy gets them: which names there are, what is sent when, and what a name costs that nothing goes by.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tether::audit::Event;
use tether::base::entropy::Entropy;
use tether::config::SdsCrl;
use tether::id::TrustDomain;
use tether::proto::admin::SetBundleRequest;
use tether::proto::envoy::config::core::v3::DataSource;
use tether::proto::envoy::config::core::v3::data_source::Specifier;
use tether::proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use tether::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use tether::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use tether::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tether::proto::google::rpc;
use tether::proto::workload::X509svidRequest;
use tether::x509::{Chain, Crl, KeyType, PrivateKey, Serial, Validity, X509Authorities, self_signed_root, verify};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{TestAgent, event, next, uid, within};
use crate::raw::get;
use crate::revocation::{Victim, agent as agent_with_victims};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const OWN: &str = "spiffe://dev.tether.internal";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const NO_X509: &str = r#"@id("no-x509") forbid(principal, action == Action::"issue", resource == Credential::"x509");"#;

/// A stream, as Envoy keeps one.
struct Envoy {
    requests: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
    names: Vec<String>,
    nonce: String,
    version: String,
}

impl Envoy {
    /// Opens a stream and asks for nothing.
    async fn open(agent: &TestAgent) -> Self {
        let (requests, sent) = mpsc::channel(8);
        let answers = client(agent).await.stream_secrets(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { requests, answers, names: Vec::new(), nonce: String::new(), version: String::new() }
    }

    /// Opens a stream and asks for these.
    async fn asking(agent: &TestAgent, names: &[&str]) -> Self {
        let mut envoy = Self::open(agent).await;
        envoy.ask(names).await;
        envoy
    }

    async fn ask(&mut self, names: &[&str]) {
        self.names = names.iter().map(ToString::to_string).collect();
        self.acknowledge().await;
    }

    /// Takes the last answer.
    async fn acknowledge(&mut self) {
        self.say(None).await;
    }

    /// Rejects the last answer.
    async fn reject(&mut self, why: &str) {
        self.say(Some(rpc::Status { code: 13, message: why.to_owned() })).await;
    }

    async fn say(&mut self, error_detail: Option<rpc::Status>) {
        let version_info = if error_detail.is_some() { String::new() } else { self.version.clone() };
        let request = DiscoveryRequest {
            version_info,
            resource_names: self.names.clone(),
            type_url: SECRET.to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail,
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The secrets of the next answer, by name.
    async fn next(&mut self) -> Result<BTreeMap<String, Type>, Status> {
        let answer = next(&mut self.answers).await?;
        assert_eq!(answer.type_url, SECRET);
        assert!(!answer.nonce.is_empty() && answer.nonce != self.nonce);
        (self.nonce, self.version) = (answer.nonce.clone(), answer.version_info.clone());
        Ok(secrets(&answer))
    }

    /// The one secret of the next answer.
    async fn next_one(&mut self) -> Type {
        let secrets = self.next().await.unwrap();
        assert_eq!(secrets.len(), 1, "{:?}", secrets.keys());
        secrets.into_values().next().unwrap()
    }
}

/// A client that sends no metadata of a Workload Endpoint.
async fn client(agent: &TestAgent) -> SecretDiscoveryServiceClient<tonic::transport::Channel> {
    SecretDiscoveryServiceClient::new(agent.channel().await)
}

fn named(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { resource_names: names.iter().map(ToString::to_string).collect(), ..DiscoveryRequest::default() }
}

fn secrets(answer: &DiscoveryResponse) -> BTreeMap<String, Type> {
    let secret = |resource: &prost_types::Any| {
        assert_eq!(resource.type_url, SECRET);
        let secret = Secret::decode(resource.value.as_slice()).unwrap();
        (secret.name, secret.r#type.unwrap())
    };
    answer.resources.iter().map(secret).collect()
}

fn text(data: Option<&DataSource>) -> &str {
    let Some(Specifier::InlineBytes(bytes)) = data.and_then(|data| data.specifier.as_ref()) else { return "" };
    std::str::from_utf8(bytes).unwrap()
}

fn certificate(secret: &Type) -> &TlsCertificate {
    let Type::TlsCertificate(certificate) = secret else { panic!("no certificate: {secret:?}") };
    certificate
}

fn chain(secret: &Type) -> Chain {
    Chain::from_pem(text(certificate(secret).certificate_chain.as_ref()).as_bytes()).unwrap()
}

fn serial(secret: &Type) -> Serial {
    chain(secret).leaf().serial().clone()
}

fn context(secret: &Type) -> &CertificateValidationContext {
    let Type::ValidationContext(context) = secret else { panic!("no authorities: {secret:?}") };
    context
}

/// The authorities for the SPIFFE validator, by trust domain, with the lists among them.
fn by_domain(secret: &Type) -> BTreeMap<String, String> {
    let validator = context(secret).custom_validator_config.as_ref().expect("a validator of its own");
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = validator.typed_config.as_ref().unwrap();
    let type_url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
    assert_eq!(config.type_url, type_url);
    let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).unwrap();
    let domain = |domain: &_| {
        let domain: &tether::proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain =
            domain;
        (domain.name.clone(), text(domain.trust_bundle.as_ref()).to_owned())
    };
    config.trust_domains.iter().map(domain).collect()
}

/// The lists in a text.
fn lists(pem: &str) -> Vec<Crl> {
    use rustls::pki_types::CertificateRevocationListDer;
    use rustls::pki_types::pem::PemObject as _;
    let lists = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes());
    lists.map(|list| Crl::from_der(&list.unwrap()).unwrap()).collect()
}

fn entry(id: &str, path: &str, more: &str) -> String {
    let uid = uid();
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"{OWN}/{path}\"\nmatch = [\"unix:uid:{uid}\"]\nowner = \"team\"\n{more}\n"
    )
}

/// Authorities that are not this agent's, in PEM.
fn other_authority(domain: &str, agent: &TestAgent) -> String {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let now = agent.clock().now();
    let validity = Validity { not_before: now, not_after: now + 60 * MINUTE };
    let serial = Serial::from_random(Entropy::system().bytes());
    let issuer = self_signed_root(TrustDomain::parse(domain).unwrap(), key, validity, &serial).unwrap();
    issuer.certificate().to_pem()
}

async fn set_bundle(agent: &TestAgent, domain: &str) {
    let content = other_authority(domain, agent);
    let request = SetBundleRequest { trust_domain: domain.to_owned(), content };
    agent.bundles().await.set(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_one_certificate_by_whatever_name_and_service_it_asks_for_it() {
    let agent = TestAgent::start().await;
    let mut events = agent.audit();
    let mut svids = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let svid = next(&mut svids).await.unwrap().svids.remove(0);
    let mut envoy = Envoy::asking(&agent, &["default", &svid.spiffe_id]).await;
    let secrets = envoy.next().await.unwrap();
    assert_eq!(secrets.len(), 2);
    for secret in secrets.values() {
        assert_eq!(chain(secret).to_der(), svid.x509_svid);
        let key = text(certificate(secret).private_key.as_ref());
        assert_eq!(key, tether::x509::pkcs8_to_pem(&svid.x509_svid_key).expose());
    }
    let issued = event(&mut events, |event| matches!(event, Event::SvidIssued { .. })).await;
    let Event::SvidIssued { kind, binding, .. } = issued else { unreachable!() };
    assert_eq!((kind, binding), ("x509", 1));
    let again =
        tokio::time::timeout(Duration::ZERO, event(&mut events, |e| matches!(e, Event::SvidIssued { .. }))).await;
    assert!(again.is_err(), "one serial number for all: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_come_with_the_lists_of_every_ca_and_believe_the_certificate() {
    let agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &["default", "ROOTCA", "ALL", OWN, "dev.tether.internal"]).await;
    let secrets = envoy.next().await.unwrap();
    assert_eq!(secrets.len(), 5);
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    for name in ["ROOTCA", OWN, "dev.tether.internal"] {
        let context = context(&secrets[name]);
        let authorities =
            X509Authorities::from_pem(domain.clone(), text(context.trusted_ca.as_ref()).as_bytes()).unwrap();
        let lists = lists(text(context.crl.as_ref()));
        let believed = verify(&chain(&secrets["default"]), &authorities, agent.clock().now(), &lists);
        assert!(believed.expect("a peer believes it").spiffe_id().as_str().starts_with(OWN));
        assert!(context.only_verify_leaf_cert_crl && context.custom_validator_config.is_none());
        assert_eq!(lists.len(), 2, "that of the signing CA, and the root's");
    }
    let all = by_domain(&secrets["ALL"]);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["dev.tether.internal"]);
    assert_eq!(lists(&all["dev.tether.internal"]).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_trust_domain_is_believed_for_its_own_certificates_alone() {
    let agent = TestAgent::start().await;
    for domain in ["partner.example", "stranger.example"] {
        set_bundle(&agent, domain).await;
    }
    agent.write_entries("f.toml", &entry("f", "f", "federates_with = [\"partner.example\"]")).await;
    let mut envoy = Envoy::asking(&agent, &["ALL", "spiffe://partner.example"]).await;
    let secrets = envoy.next().await.unwrap();
    assert_eq!(by_domain(&secrets["ALL"]).into_keys().collect::<Vec<_>>(), ["dev.tether.internal", "partner.example"]);
    let partner = by_domain(&secrets["spiffe://partner.example"]);
    assert_eq!(partner.keys().collect::<Vec<_>>(), ["partner.example"]);
    assert!(lists(&partner["partner.example"]).is_empty(), "nobody here has its lists");
    let refused = Envoy::asking(&agent, &["stranger.example"]).await.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "no entry federates with it: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nothing_goes_by_costs_the_others_nothing_and_alone_it_ends_the_stream_with_what_there_is() {
    let agent = TestAgent::start().await;
    let mut events = agent.audit();
    let mut envoy = Envoy::asking(&agent, &["file-cert:/etc/certs/tls.crt", "ROOTCA"]).await;
    assert_eq!(envoy.next().await.unwrap().into_keys().collect::<Vec<_>>(), ["ROOTCA"]);
    let refused = event(&mut events, |event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { reason, detail, .. } = refused else { unreachable!() };
    assert_eq!(reason, "unknown_secret");
    assert!(detail.contains("`file-cert:/etc/certs/tls.crt`") && detail.contains("Istio"), "{detail}");
    // The stream goes on, and the name counts as soon as something goes by it.
    envoy.ask(&["ROOTCA", "spiffe://dev.tether.internal/late"]).await;
    agent.write_entries("late.toml", &entry("late", "late", "")).await;
    assert_eq!(envoy.next().await.unwrap().into_keys().collect::<Vec<_>>(), ["spiffe://dev.tether.internal/late"]);

    for name in ["no such\nthing", "spiffe://dev.tether.internal/other", "elsewhere.example"] {
        let refused = Envoy::asking(&agent, &[name]).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        for offered in ["`default`", "`ROOTCA`", "`ALL`", "`spiffe://dev.tether.internal/late`", "tether explain"] {
            assert!(refused.message().contains(offered), "{refused:?}");
        }
        assert!(!refused.message().contains('\n'), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_answered_at_once_and_what_was_taken_or_rejected_is_not_sent_again() {
    let agent = TestAgent::configured(|config| config.http.address = Some("127.0.0.1:0".parse().unwrap())).await;
    let mut envoy = Envoy::asking(&agent, &["default"]).await;
    let first = serial(&envoy.next_one().await);
    envoy.acknowledge().await;
    envoy.reject("this key is\nnot to my taste").await;
    // Answers come in the order of requests: had one of these been answered, it would be here.
    envoy.ask(&["default", "ROOTCA"]).await;
    assert_eq!(envoy.next().await.unwrap().into_keys().collect::<Vec<_>>(), ["ROOTCA"]);
    envoy.ask(&["ROOTCA"]).await;
    envoy.ask(&["ROOTCA", "default"]).await;
    assert_eq!(serial(&envoy.next_one().await), first, "what was given up is sent when it is wanted again");
    let (_, metrics) = get(agent.http(), "/metrics").await;
    assert!(metrics.contains("tether_sds_rejected_total 1"), "{metrics}");
    assert!(metrics.contains("tether_workload_streams{rpc=\"StreamSecrets\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_about_an_older_answer_is_left_out() {
    let agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &["default"]).await;
    envoy.next_one().await;
    let (nonce, version) = (envoy.nonce.clone(), envoy.version.clone());
    envoy.nonce = "of another stream".to_owned();
    envoy.ask(&["no such thing"]).await;
    (envoy.nonce, envoy.version) = (nonce, version);
    envoy.ask(&["ROOTCA"]).await;
    context(&envoy.next_one().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_pushed_without_the_authorities() {
    let agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &["default", "ROOTCA"]).await;
    let before = envoy.next().await.unwrap();
    let version = envoy.version.clone();
    agent.clock().advance(MINUTE * 9);
    let after = envoy.next_one().await;
    assert_ne!(serial(&after), serial(&before["default"]));
    assert_ne!(envoy.version, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_sends_authorities_and_never_a_certificate() {
    let agent = agent_with_victims().await;
    let mut victim = Victim::of(&agent).await;
    let mut both = Envoy::asking(&agent, &["default", "ROOTCA", "ALL"]).await;
    let mut only_certificate = Envoy::asking(&agent, &["default"]).await;
    both.next().await.unwrap();
    let first = serial(&only_certificate.next_one().await);
    victim.die(&agent).await;
    agent.clock().advance(SECOND);
    let woken = both.next().await.unwrap();
    assert_eq!(woken.keys().collect::<Vec<_>>(), ["ALL", "ROOTCA"]);
    let revokes = |pem: &str| lists(pem).iter().any(|list| list.revokes(&victim.serial()));
    assert!(revokes(text(context(&woken["ROOTCA"]).crl.as_ref())));
    assert!(revokes(&by_domain(&woken["ALL"])["dev.tether.internal"]));
    // What that stream is sent next is its renewal, and was not sent for the list.
    agent.clock().advance(MINUTE * 9);
    assert_ne!(serial(&only_certificate.next_one().await), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_a_new_ca_is_sent_together_with_the_change_and_not_a_second_later() {
    let agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &["default", "ROOTCA"]).await;
    envoy.next().await.unwrap();
    let mut authorities = agent.authorities().await;
    let rotate = tether::proto::admin::RotateAuthorityRequest { kind: "x509-signing".to_owned(), now: true };
    authorities.rotate(rotate).await.unwrap();
    // No hand of the clock is moved: nothing that is announced once a second can be it.
    let now = agent.clock().now();
    let secrets = envoy.next().await.unwrap();
    assert_eq!(lists(text(context(&secrets["ROOTCA"]).crl.as_ref())).len(), 3);
    assert_eq!(agent.clock().now(), now);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_other_nodes_issue_too_there_are_no_lists_unless_they_are_wanted() {
    let mut agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &["ROOTCA"]).await;
    assert!(context(&envoy.next_one().await).crl.is_some());
    // Envoy would refuse whatever that authority signs: nobody here has its list.
    set_bundle(&agent, "dev.tether.internal").await;
    let both = envoy.next_one().await;
    assert!(context(&both).crl.is_none() && !context(&both).only_verify_leaf_cert_crl);
    let mut all = Envoy::asking(&agent, &["ALL"]).await;
    assert!(lists(&by_domain(&all.next_one().await)["dev.tether.internal"]).is_empty());

    agent.restart_with(|config| config.sds.crl = SdsCrl::Always).await;
    assert!(context(&Envoy::asking(&agent, &["ROOTCA"]).await.next_one().await).crl.is_some());
    agent.restart_with(|config| config.sds.crl = SdsCrl::Never).await;
    assert!(context(&Envoy::asking(&agent, &["ROOTCA"]).await.next_one().await).crl.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_what_it_asked_for_loses_the_stream_and_is_told_why() {
    let agent = TestAgent::start().await;
    agent.write_entries("more.toml", &entry("more", "more", "")).await;
    let more = format!("{OWN}/more");
    let mut envoy = Envoy::asking(&agent, &[&more]).await;
    envoy.next_one().await;
    agent.remove_entries("more.toml").await;
    let refused = envoy.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains(&more), "{refused:?}");

    let mut certificate = Envoy::asking(&agent, &["default"]).await;
    let mut both = Envoy::asking(&agent, &["default", "ROOTCA"]).await;
    certificate.next_one().await;
    both.next().await.unwrap();
    agent.write_policies("narrow.cedar", NO_X509).await;
    let refused = certificate.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains("policy `no-x509` forbids `issue`"), "{refused:?}");
    // Authorities are no secret that policy refuses: that stream goes on, with the list the certificate is on.
    // It is announced within a second of when it is noticed.
    let told = async {
        let mut told = std::pin::pin!(both.next());
        loop {
            tokio::select! {
                biased;
                told = &mut told => return told,
                () = tokio::task::yield_now() => agent.clock().advance(SECOND / 100),
            }
        }
    };
    assert_eq!(within(told).await.unwrap().into_keys().collect::<Vec<_>>(), ["ROOTCA"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_an_identity_gets_neither_certificates_nor_authorities() {
    let agent = TestAgent::without_entries().await;
    for name in ["default", "ROOTCA", "anything"] {
        let refused = Envoy::asking(&agent, &[name]).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains("no registration entry matches"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_nothing_gets_everything_and_who_named_something_nothing() {
    let agent = TestAgent::start().await;
    let mut envoy = Envoy::asking(&agent, &[]).await;
    let everything = envoy.next().await.unwrap();
    assert_eq!(everything.len(), 2, "{:?}", everything.keys());
    chain(everything.iter().find(|(name, _)| name.starts_with("spiffe://dev.tether.internal/user/")).unwrap().1);
    context(&everything[OWN]);

    envoy.ask(&["ROOTCA"]).await;
    assert!(envoy.next().await.unwrap().contains_key("ROOTCA"));
    envoy.ask(&[]).await;
    envoy.ask(&["ALL"]).await;
    assert_eq!(envoy.next().await.unwrap().into_keys().collect::<Vec<_>>(), ["ALL"], "it wanted nothing in between");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_can_be_fetched_once_and_not_incrementally() {
    let agent = TestAgent::start().await;
    let mut client = client(&agent).await;
    let answer = client.fetch_secrets(named(&["default", "no such thing"])).await.unwrap().into_inner();
    assert_eq!(secrets(&answer).into_keys().collect::<Vec<_>>(), ["default"]);
    assert_eq!(client.fetch_secrets(named(&["no such thing"])).await.unwrap_err().code(), Code::NotFound);
    let other_type = DiscoveryRequest { type_url: "type.googleapis.com/x".to_owned(), ..named(&["default"]) };
    assert_eq!(client.fetch_secrets(other_type).await.unwrap_err().code(), Code::InvalidArgument);
    let too_many: Vec<String> = (0..257).map(|number| number.to_string()).collect();
    let too_many = DiscoveryRequest { resource_names: too_many, ..DiscoveryRequest::default() };
    assert_eq!(client.fetch_secrets(too_many).await.unwrap_err().code(), Code::InvalidArgument);
    let (_requests, none) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let refused = client.delta_secrets(ReceiverStream::new(none)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("`api_type: GRPC`"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_what_the_configuration_says_and_the_service_can_be_off() {
    let mut agent = TestAgent::configured(|config| {
        config.sds.default_svid_name = "me".to_owned();
        config.sds.default_bundle_name = "us".to_owned();
        config.sds.default_all_bundles_name = "everybody".to_owned();
    })
    .await;
    let mut envoy = Envoy::asking(&agent, &["me", "us", "everybody"]).await;
    assert_eq!(envoy.next().await.unwrap().len(), 3);
    assert_eq!(Envoy::asking(&agent, &["default"]).await.next().await.unwrap_err().code(), Code::NotFound);
    agent.restart_with(|config| config.sds.enabled = false).await;
    let off = client(&agent).await.fetch_secrets(named(&["me"])).await.unwrap_err();
    assert_eq!(off.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_secrets_count_as_calls_of_their_user() {
    let agent = TestAgent::configured(|config| config.limits.calls_per_uid = 1).await;
    let mut envoy = Envoy::asking(&agent, &["ROOTCA"]).await;
    envoy.next_one().await;
    let full = client(&agent).await.fetch_secrets(named(&["ROOTCA"])).await.unwrap_err();
    assert_eq!(full.code(), Code::Unavailable, "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_gets_no_secret() {
    let agent = TestAgent::start().await;
    let stream = UnixStream::connect(agent.socket()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = [&[0, 0, 0, 0, 9, 0x1a, 7][..], b"default"].concat();
    for (content_type, wanted) in [(None, "3"), (Some("application/json"), "3"), (Some("application/grpc"), "0")] {
        let mut request =
            hyper::Request::post("http://localhost/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let body = http_body_util::Full::new(bytes::Bytes::from(body.clone()));
        let answer = within(sender.send_request(request.body(body).unwrap())).await.unwrap();
        let in_head = answer.headers().get("grpc-status").cloned();
        let collected = within(http_body_util::BodyExt::collect(answer.into_body())).await.unwrap();
        let trailer = collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        let status = in_head.or(trailer).expect("a status");
        assert_eq!(status, wanted, "{content_type:?}");
    }
}
