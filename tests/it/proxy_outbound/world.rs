//! An agent, a target behind TLS, and the proxy as a process of its own between programs and the target.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ServerConfig;
use tether::client::Endpoint;
use tether::client::tls::{Authorize, Custody, X509Source, peer_id, server_config};
use tether::proto::session::{CheckRequest, CheckResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::harness::{PATIENCE, TestAgent, within};
use crate::program::{copy_program, lines};

pub const TETHER: &str = env!("CARGO_BIN_EXE_tether");

/// An agent whose entries know programs by their path, and a tool.
pub struct World {
    pub agent: TestAgent,
    pub tool: Tool,
    /// For sockets and programs, and open to all users.
    pub dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let agent = TestAgent::without_entries().await;
        // Proofs from before the agent's start are refused.
        agent.clock().advance(Duration::from_secs(2));
        let dir = tempfile::Builder::new().permissions(open_to_all()).tempdir().unwrap();
        agent.write_policies("all.cedar", "@id(\"all\") permit (principal, action, resource);").await;
        let own = std::env::current_exe().unwrap();
        let entry = |id: &str, program: &Path, more: &str| {
            format!(
                "[[entry]]\nid = \"{}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nowner = \"team\"\n\
                 match = [\"unix:path:{}\"]\n{more}\n",
                id.replace('/', "-"),
                program.display()
            )
        };
        let program = |name: &str| entry(&format!("program/{name}"), &dir.path().join(name), "audiences = [\"*\"]");
        let entries = [
            entry("proxy", Path::new(TETHER), "may_act_for = [\"spiffe://dev.tether.internal/program/*\"]"),
            entry("tool", &own, "serves = [\"*\"]"),
            program("a"),
            program("b"),
            program("trusted"),
        ];
        agent.write_entries("entries.toml", &entries.concat()).await;
        let tool = Tool::start(&agent).await;
        Self { agent, tool, dir }
    }

    /// Starts a proxy that programs reach at a Unix socket, and leads to the tool.
    pub async fn proxy(&self, arguments: &[&str]) -> Proxy {
        let listen = format!("unix:{}", self.dir.path().join("proxy.sock").display());
        let to = ["--target", &self.tool.uri(""), "--peer", "spiffe://dev.tether.internal/tool"];
        self.proxy_at(&listen, &[&to[..], arguments].concat()).await
    }

    /// Starts a proxy, and waits until it is ready.
    pub async fn proxy_at(&self, listen: &str, arguments: &[&str]) -> Proxy {
        let mut command = Command::new(TETHER);
        command.env_clear().args(["proxy", "outbound", "--listen", listen]).args(arguments);
        command.arg("--socket").arg(self.agent.socket());
        within(tokio::task::spawn_blocking(move || Proxy::start(command))).await.unwrap()
    }

    /// What the agent says of a request that the tool has seen.
    pub async fn check(&self, seen: &Seen) -> CheckResponse {
        let headers =
            seen.headers.iter().filter(|(name, _)| *name == "authorization" || name.as_str().starts_with("workload-"));
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let (method, uri) = (seen.method.clone(), self.tool.uri(&seen.path));
        let request = CheckRequest { method, uri, headers, ..CheckRequest::default() };
        self.agent.verifier().await.check(request).await.unwrap().into_inner()
    }

    /// A program of this name, which these tests play; `None` for one that no entry knows.
    pub fn program(&self, name: &str) -> PathBuf {
        let (own, path) = (std::env::current_exe().unwrap(), self.dir.path().join(name));
        // One file under several names, where that can be: it is large.
        if !path.exists() && std::fs::hard_link(&own, &path).is_err() {
            copy_program(&own, &path);
        }
        path
    }
}

fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

/// A request as the target got it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who proved itself in TLS.
    pub peer: Option<String>,
    /// Which connection it came on.
    pub connection: usize,
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The target.
pub struct Tool {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    cut: tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>,
}

impl Tool {
    /// One with the identity of these tests, that talks to everybody who has one. Its key is here: a handshake must not wait
    /// for an agent that runs on the same threads.
    pub async fn start(agent: &TestAgent) -> Self {
        let endpoint = Endpoint::Unix(agent.socket().to_owned());
        let source = within(X509Source::connect_by(endpoint, Custody::Program, agent.time())).await.unwrap();
        Self::with(server_config(&source, Authorize::Anyone)).await
    }

    /// One that speaks TLS as `tls` says.
    pub async fn with(mut tls: ServerConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let (seen, (cuts, cut)) = (Arc::<Mutex<Vec<Seen>>>::default(), mpsc::unbounded_channel());
        let (remembers, numbers) = (seen.clone(), AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen, cuts) = (acceptor.clone(), remembers.clone(), cuts.clone());
                let connection = numbers.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let state = stream.get_ref().1;
                    let peer = peer_id(state).map(|id| id.to_string());
                    let http2 = state.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request| {
                        answer(request, connection, peer.clone(), seen.clone(), cuts.clone())
                    });
                    // A connection that is cut ends in an error.
                    if http2 {
                        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let serving = hyper::server::conn::http1::Builder::new();
                        let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { port: address.port(), seen, cut: tokio::sync::Mutex::new(cut) }
    }

    pub fn uri(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// Everything it has got so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns when an answer of its that had begun was cut.
    pub async fn was_cut(&self) {
        within(self.cut.lock().await.recv()).await.unwrap();
    }
}

/// Tells when it is dropped.
struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

async fn answer(
    request: Request<Incoming>,
    connection: usize,
    peer: Option<String>,
    seen: Arc<Mutex<Vec<Seen>>>,
    cuts: mpsc::UnboundedSender<()>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (method, path) = (head.method.to_string(), head.uri.path().to_owned());
    seen.lock().unwrap().push(Seen { peer, connection, method, path: path.clone(), headers: head.headers, body });
    let mut response = Response::new(Full::from(format!("this is {path}")).boxed());
    match path.as_str() {
        "/endless" => {
            let first = Ok(Frame::data(Bytes::from_static(b"begun")));
            let stream = futures_util::stream::unfold((Some(first), Told(cuts)), |(first, told)| async move {
                match first {
                    Some(first) => Some((first, (None, told))),
                    None => std::future::pending().await,
                }
            });
            *response.body_mut() = BodyExt::boxed(StreamBody::new(sync(stream)));
        }
        "/401" => {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response.headers_mut().insert("www-authenticate", "WPT".parse().unwrap());
        }
        "/redirect" => {
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "https://elsewhere.example.com/".parse().unwrap());
        }
        _ => {}
    }
    Ok(response)
}

/// A stream that is asked from one place at a time.
fn sync<S: futures_util::Stream + Send>(stream: S) -> impl futures_util::Stream<Item = S::Item> + Send + Sync {
    struct Sync<S>(Mutex<std::pin::Pin<Box<S>>>);
    impl<S: futures_util::Stream> futures_util::Stream for Sync<S> {
        type Item = S::Item;
        fn poll_next(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<S::Item>> {
            self.0.lock().unwrap().as_mut().poll_next(cx)
        }
    }
    Sync(Mutex::new(Box::pin(stream)))
}

/// The proxy, killed when this is dropped.
pub struct Proxy {
    child: Child,
    log: Receiver<String>,
    /// Where programs connect.
    pub address: String,
}

impl Proxy {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (printed, log) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        let mut address = String::new();
        while let Ok(line) = printed.recv_timeout(PATIENCE) {
            if let Some(listening) = line.strip_prefix("listening on") {
                address = listening.trim().trim_start_matches("unix:").to_owned();
            }
            if line == "ready" {
                return Self { child, log, address };
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("it did not get ready: {:#?}", log.iter().collect::<Vec<_>>());
    }

    /// The next line of the log that contains `wanted`.
    pub async fn logs(&self, wanted: &str) -> String {
        let mut logged = Vec::new();
        loop {
            match tokio::task::block_in_place(|| self.log.recv_timeout(PATIENCE)) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(line) => logged.push(line),
                Err(_) => panic!("`{wanted}` was not logged: {logged:#?}"),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// Waits until it has ended by itself.
    pub async fn ends(mut self) -> bool {
        tokio::task::block_in_place(|| self.child.wait().expect("it ends").success())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Shown where the test has failed.
        self.log.iter().for_each(|line| eprintln!("{line}"));
    }
}
