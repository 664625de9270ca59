//! Everything that is measured, each as a process of its own: an agent, what is behind the proxies, and the proxies.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tether::id::TrustDomain;
use tether::proto::session::{ProveRequest, StartRequest};
use tether::x509::{Chain, X509Authorities, pkcs8_to_pem};

use crate::bare::NOBODY;
use crate::driver::Requests;
use crate::support::Result;
use crate::support::client::{Sessions, client, first_x509, sessions};
use crate::support::process::{Agent, Process, entry_for_me, tether};

pub const BARE: &str = "bare";
pub const NGINX: &str = "nginx";
/// Proofs that are asked for at one time.
const IN_FLIGHT: usize = 32;
const ME: &str = "spiffe://bench.example/bench";

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Place {
    Tls(SocketAddr),
    Socket(PathBuf),
}

/// One way to the tool.
#[derive(Clone, Debug)]
pub struct Served {
    pub name: &'static str,
    pub place: Place,
    /// What requests have as their host.
    host: String,
    /// Whether each request comes with a proof that the client brings.
    with_proofs: bool,
    /// Whether the goals are about this one.
    pub has_goal: bool,
}

impl Served {
    fn tls(name: &'static str, address: SocketAddr) -> Self {
        Self { name, place: Place::Tls(address), host: address.to_string(), with_proofs: false, has_goal: false }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.place, Place::Tls(_))
    }
}

/// All of it.
pub struct Scene {
    /// A client that prefers a hybrid key exchange, and one that knows none.
    pub hybrid: Arc<ClientConfig>,
    pub classical: Arc<ClientConfig>,
    served: Vec<Served>,
    sessions: Sessions,
    session: String,
    // In the order in which they end.
    _proxies: Vec<Process>,
    _upstream: Process,
    _agent: Agent,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub async fn set_up() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let policies = dir.path().join("policies");
        std::fs::create_dir(&policies)?;
        std::fs::write(policies.join("bench.cedar"), "permit (principal, action, resource);\n")?;
        let entry = format!("{}serves = [\"*\"]\nmay_act_for = [\"{ME}\"]\n", entry_for_me());
        let agent = Agent::start(&entry, &[&format!("policies_dir={}", policies.display()), "sessions.enabled=true"])?;
        write_svid(&agent.socket(), dir.path()).await?;

        let mut upstream = Process::spawn(&mut Process::role(&["upstream"])?)?;
        let behind = upstream.line()?;
        let (mut proxies, mut served) = (Vec::new(), Vec::new());

        let mut bare = Process::spawn(&mut Process::role(&["bare", &dir.path().display().to_string(), &behind])?)?;
        served.push(Served::tls(BARE, bare.line()?.parse()?));
        proxies.push(bare);
        if let Some((nginx, address)) = nginx(dir.path(), &behind)? {
            served.push(Served::tls(NGINX, address));
            proxies.push(nginx);
        }
        let mut inbound = |name, more: &[&str]| -> Result<Served> {
            let address = free_address()?;
            let listen = address.to_string();
            let mut arguments = vec!["inbound", "--listen", &listen, "--upstream"];
            let upstream = format!("http://{behind}");
            arguments.push(&upstream);
            arguments.extend(more);
            proxies.push(Process::start(&mut proxy(&agent, &arguments))?);
            Ok(Served::tls(name, address))
        };
        served.push(inbound("no policy", &["--no-policy", "--allow", ME])?);
        served.push(inbound("own key", &["--no-policy", "--allow", ME, "--custody", "proxy"])?);
        let asked = inbound("policy", &[])?;
        served.push(asked.clone());
        served.push(Served { name: "proof", with_proofs: true, has_goal: true, ..asked.clone() });
        let socket = dir.path().join("outbound.sock");
        let listen = format!("unix:{}", socket.display());
        let target = format!("https://{}", asked.host);
        let arguments = ["outbound", "--listen", &listen, "--target", &target, "--peer", ME];
        proxies.push(Process::start(&mut proxy(&agent, &arguments))?);
        served.push(Served { name: "both", place: Place::Socket(socket), ..asked.clone() });

        let mut sessions = sessions(&agent.socket())?;
        let wish = StartRequest {
            purpose: "bench".to_owned(),
            targets: vec![format!("{target}/")],
            ..StartRequest::default()
        };
        let session = sessions.start(wish).await?.into_inner().id;
        // Proofs from before the verifier began to remember are refused: it minds whole seconds.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Self {
            hybrid: Arc::new(tls(dir.path(), vec![kx_group::X25519MLKEM768, kx_group::X25519])?),
            classical: Arc::new(tls(dir.path(), vec![kx_group::X25519])?),
            served,
            sessions,
            session,
            _proxies: proxies,
            _upstream: upstream,
            _agent: agent,
            _dir: dir,
        })
    }

    /// What is measured, the baselines first.
    pub fn ways(&self) -> impl Iterator<Item = &Served> {
        self.served.iter()
    }

    /// So many requests; proofs are made here, and are no part of what is measured.
    pub async fn requests(&self, served: &Served, count: usize) -> Result<Requests> {
        if !served.with_proofs {
            return Ok(Requests::new(served.host.clone(), vec![String::new(); count]));
        }
        let uri = format!("https://{}/document", served.host);
        let mut headers = Vec::with_capacity(count);
        while headers.len() < count {
            let more = IN_FLIGHT.min(count - headers.len());
            let proving = (0..more).map(|_| prove(self.sessions.clone(), self.session.clone(), uri.clone()));
            headers.extend(futures_util::future::try_join_all(proving).await?);
        }
        Ok(Requests::new(served.host.clone(), headers))
    }
}

async fn prove(mut sessions: Sessions, session: String, uri: String) -> Result<String> {
    let request = ProveRequest { session, method: "GET".to_owned(), uri, ..ProveRequest::default() };
    let headers = sessions.prove(request).await?.into_inner().headers;
    Ok(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect())
}

fn proxy(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(tether());
    command.arg("proxy").args(arguments).arg("--socket").arg(agent.socket()).args(["--log-level", "error"]);
    command
}

/// The SVID of this program with its key, in files: for everybody who reads files.
async fn write_svid(socket: &Path, dir: &Path) -> Result<()> {
    let answer = first_x509(&mut client(socket)?).await?;
    let svid = answer.svids.first().ok_or("an answer without an SVID")?;
    let bundle = X509Authorities::from_der(TrustDomain::parse("bench.example")?, &svid.bundle)?;
    std::fs::write(dir.join("svid.pem"), Chain::from_der(&svid.x509_svid)?.to_pem())?;
    std::fs::write(dir.join("svid_key.pem"), pkcs8_to_pem(&svid.x509_svid_key).expose())?;
    Ok(std::fs::write(dir.join("bundle.pem"), bundle.to_pem())?)
}

/// Nobody listens there a moment before.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// nginx with the same certificates; `None` where it is not installed.
fn nginx(dir: &Path, behind: &str) -> Result<Option<(Process, SocketAddr)>> {
    if Command::new("nginx").arg("-v").stderr(std::process::Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let address = free_address()?;
    let path = dir.display();
    let config = format!(
        "daemon off; worker_processes auto; pid {path}/nginx.pid; error_log {path}/nginx.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
           fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
           upstream behind {{ server {behind}; keepalive 64; }}\n\
           server {{\n\
             listen {address} ssl; keepalive_requests 1000000;\n\
             ssl_certificate {path}/svid.pem; ssl_certificate_key {path}/svid_key.pem;\n\
             ssl_client_certificate {path}/bundle.pem; ssl_verify_client on; ssl_verify_depth 4;\n\
             ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;\n\
             if ($host = {NOBODY}) {{ return 421; }}\n\
             location / {{ proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n\
           }}\n\
         }}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("nginx.log"));
    let process = Process::spawn(&mut command)?;
    for _ in 0..100 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(Some((process, address)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = std::fs::read_to_string(dir.join("nginx.log")).unwrap_or_default();
    Err(format!("nginx does not listen: {log}").into())
}

fn tls(dir: &Path, groups: Vec<&'static dyn SupportedKxGroup>) -> Result<ClientConfig> {
    let provider = Arc::new(CryptoProvider { kx_groups: groups, ..default_provider() });
    let chain = CertificateDer::pem_file_iter(dir.join("svid.pem"))?.collect::<std::result::Result<Vec<_>, _>>()?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join("svid_key.pem"))?)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A client that believes everybody, and checks signatures: what it costs is the same for all.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is measured".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
