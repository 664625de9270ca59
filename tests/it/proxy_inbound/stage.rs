//! An agent, the proxy, a tool behind it and clients in front.

use std::future::Future;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tether::base::clock::Clock;
use tether::client::Endpoint;
use tether::client::session::{Call, Digest, NewSession, SessionClient};
use tether::client::tls::{Authorize, Custody, PeerVerifier, X509Source, client_config, unnamed};
use tether::id::SpiffeId;
use tether::proxy::inbound::{Inbound, build};
use tether::proxy::{Address, Body, BoxError, empty, full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::handshake::Credentials;
use crate::harness::{TestAgent, uid, within};

pub fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://dev.tether.internal/{name}")).unwrap()
}

/// The whole of an answer's body as text.
pub async fn read(answer: Response<Incoming>) -> String {
    let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

type Piece = Result<Frame<Bytes>, BoxError>;

/// A body that is sent piece by piece.
pub struct Pieces(mpsc::Sender<Piece>);

pub fn body() -> (Pieces, Body) {
    let (send, pieces) = mpsc::channel(8);
    let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    (Pieces(send), BodyExt::boxed_unsync(StreamBody::new(pieces)))
}

impl Pieces {
    pub async fn send_data(&mut self, data: Bytes) {
        self.0.send(Ok(Frame::data(data))).await.unwrap();
    }

    pub async fn send_trailers(self, trailers: &[(&'static str, &'static str)]) {
        let parse = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        self.0.send(Ok(Frame::trailers(trailers.iter().map(parse).collect()))).await.unwrap();
    }
}

/// What is behind the proxy.
pub struct Tool {
    seen: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Option<broadcast::Sender<String>>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Behind {
    seen: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Option<broadcast::Sender<String>>>>,
}

impl Tool {
    fn new(listener: ToolListener, http2: bool) -> Self {
        let (seen, events) =
            (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Mutex::new(Some(broadcast::channel(8).0))));
        let behind = Behind { seen: seen.clone(), events: events.clone() };
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let io = listener.accept().await;
                let behind = behind.clone();
                let service = service_fn(move |request| {
                    let behind = behind.clone();
                    async move { Ok::<_, std::convert::Infallible>(behind.answer(request).await) }
                });
                connections.spawn(async move {
                    let io = TokioIo::new(io);
                    if http2 {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(io, service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(io, service).with_upgrades().await;
                    }
                });
            }
        });
        Self { seen, events, task }
    }

    /// The first lines of all requests.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Sends an event to all who listen.
    pub fn event(&self, text: &str) {
        let _ = self.events.lock().unwrap().as_ref().expect("not ended").send(text.to_owned());
    }

    pub fn end_events(&self) {
        self.events.lock().unwrap().take();
    }

    pub fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum ToolListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl ToolListener {
    async fn accept(&self) -> Pin<Box<dyn tether::proxy::Io>> {
        match self {
            Self::Tcp(listener) => Box::pin(listener.accept().await.unwrap().0),
            Self::Unix(listener) => Box::pin(listener.accept().await.unwrap().0),
        }
    }
}

impl Behind {
    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        let line = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
        self.seen.lock().unwrap().push(line.clone());
        match request.uri().path() {
            "/never" => std::future::pending().await,
            "/fails" => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
            "/echo" => {
                let mut response = Response::new(request.into_body().map_err(Into::into).boxed_unsync());
                response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
                response
            }
            "/events" => {
                let events = self.events.lock().unwrap().as_ref().unwrap().subscribe();
                let events = stream::unfold(events, |mut events| async {
                    let event = events.recv().await.ok()?;
                    Some((Ok::<_, BoxError>(Frame::data(Bytes::from(event))), events))
                });
                let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
                response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
                response
            }
            "/ws" if request.headers().contains_key("upgrade") => {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let Ok(stream) = upgrade.await else { return };
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
                response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
                response
            }
            _ => {
                let authority = request.uri().authority().map(|authority| format!("host: {authority}\n"));
                let (head, body) = request.into_parts();
                let headers = head.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
                let said: String = authority.into_iter().chain(headers).collect();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                Response::new(full(format!("{line}\n{said}\n{}", String::from_utf8_lossy(&body))))
            }
        }
    }
}

/// All of them.
pub struct Stage {
    pub agent: TestAgent,
    pub tool: Tool,
    pub source: X509Source,
    address: SocketAddr,
    upstream: Address,
    metrics: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Stage {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(configure: impl FnOnce(&mut Inbound)) -> Self {
        Self::behind(false, configure).await
    }

    pub async fn behind(http2: bool, configure: impl FnOnce(&mut Inbound)) -> Self {
        let agent = crate::revocation::agent().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        Self::all(agent, ToolListener::Tcp(listener), upstream, http2, configure).await
    }

    pub async fn on_unix_socket() -> Self {
        let agent = crate::revocation::agent().await;
        let path = agent.dir().join("tool.sock");
        let listener = ToolListener::Unix(UnixListener::bind(&path).unwrap());
        Self::all(agent, listener, Address::Unix(path), false, |_| ()).await
    }

    async fn all(
        agent: TestAgent,
        listener: ToolListener,
        upstream: Address,
        http2: bool,
        configure: impl FnOnce(&mut Inbound),
    ) -> Self {
        for name in ["server", "client", "stranger"] {
            let entry =
                format!("[[entry]]\nid = \"{name}\"\nspiffe_id = \"{}\"\nmatch = [\"unix:uid:{}\"]\n", id(name), uid());
            agent.write_entries(&format!("{name}.toml"), &entry).await;
        }
        // Proofs from before the agent's start are refused.
        agent.clock().advance(Duration::from_secs(2));
        let endpoint = Endpoint::Unix(agent.socket().to_owned());
        let mut settings = Inbound {
            upstream_http2: http2,
            identity: Some(id("server")),
            clock: agent.time(),
            ..Inbound::new(endpoint.clone(), Address::parse("127.0.0.1:0").unwrap(), upstream.clone())
        };
        configure(&mut settings);
        let bound = within(build(settings)).await.expect("the proxy starts");
        let Address::Tcp { host, port } = bound.address.clone() else { panic!("it listens on TCP") };
        let address = SocketAddr::new(host.parse().unwrap(), port);
        let metrics = bound.metrics;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            bound
                .run(async {
                    let _ = stopped.await;
                })
                .await;
        });
        let source = within(X509Source::connect_by(endpoint, Custody::Program, agent.time())).await.unwrap();
        Self { tool: Tool::new(listener, http2), agent, source, address, upstream, metrics, stop: Some(stop), task }
    }

    /// What clients call it.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder().method(method).uri(format!("https://{}{path}", self.host()))
    }

    /// The TLS of a client with this identity, which talks to the proxy alone.
    pub fn tls(&self, name: &str) -> ClientConfig {
        client_config(&self.source.presenting(id(name)), id("server").into())
    }

    /// The TLS of a thief.
    pub fn tls_stolen(&self, stolen: &Credentials) -> ClientConfig {
        let time = Arc::new(AgentTime(self.agent.time()));
        ClientConfig::builder_with_details(aws_lc_rs::default_provider().into(), time)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(&self.source, Authorize::Anyone)))
            .with_client_auth_cert(stolen.chain.clone(), stolen.key.clone_key().into())
            .unwrap()
    }

    pub async fn plain(&self) -> TcpStream {
        within(TcpStream::connect(self.address)).await.unwrap()
    }

    /// A connection; in TLS 1.3 a client that is refused learns of it with the first bytes.
    pub async fn connect(&self, tls: ClientConfig, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_to(self.address, tls, protocol).await
    }

    pub async fn connect_to(
        &self,
        address: SocketAddr,
        mut tls: ClientConfig,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        tls.alpn_protocols = vec![protocol.to_vec()];
        let stream = within(TcpStream::connect(address)).await?;
        within(TlsConnector::from(Arc::new(tls)).connect(unnamed(), stream)).await
    }

    pub async fn client(&self, http2: bool) -> Client {
        self.client_of(self.tls("client"), http2).await
    }

    pub async fn client_of(&self, tls: ClientConfig, http2: bool) -> Client {
        let stream = self.connect(tls, if http2 { b"h2" } else { b"http/1.1" }).await.unwrap();
        Client::over(stream, http2).await
    }

    /// A client, when the proxy can shake hands again.
    pub async fn client_when_ready(&self) -> Client {
        within(async {
            loop {
                let mut client = self.client(true).await;
                if client.ready().await {
                    return client;
                }
            }
        })
        .await
    }

    /// The certificate that the proxy shows.
    pub async fn shown(&self) -> Vec<u8> {
        let stream = self.connect(self.tls("client"), b"h2").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// Moves the clock past half of the certificates' life, and waits until the proxy and the clients have new ones.
    pub async fn renewed(&self) {
        let (shown, mut changes) = (self.shown().await, self.source.changes());
        self.agent.clock().advance(Duration::from_secs(10 * 60));
        within(changes.next()).await.unwrap();
        within(async { while self.shown().await == shown {} }).await;
    }

    /// What comes back for these bytes, until the proxy closes.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect(self.tls("client"), b"http/1.1").await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A WebSocket that has begun.
    pub async fn websocket(&self, protocol: &str) -> TlsStream<TcpStream> {
        self.websocket_of(self.tls("client"), protocol, &HeaderMap::new()).await
    }

    pub async fn websocket_of(&self, tls: ClientConfig, to: &str, headers: &HeaderMap) -> TlsStream<TcpStream> {
        let mut stream = self.connect(tls, b"http/1.1").await.unwrap();
        let more: String =
            headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: {to}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n",
            self.host()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(within(stream.read_u8()).await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        stream
    }

    /// What the metrics listener says.
    pub async fn probe(&self, path: &str) -> String {
        let mut stream = within(TcpStream::connect(self.metrics.unwrap())).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    pub fn sessions(&self) -> SessionClient {
        SessionClient::new(Endpoint::Unix(self.agent.socket().to_owned()))
    }

    /// A session of the client for everything the proxy serves.
    pub async fn session(&self, purpose: &str) -> String {
        let wish = NewSession {
            spiffe_id: Some(id("client")),
            ..NewSession::new(purpose, format!("https://{}/", self.host()))
        };
        within(self.sessions().start(&wish)).await.unwrap().id
    }

    pub async fn prove(&self, session: &str, method: Method, path: &str) -> HeaderMap {
        let call = Call::new(method.as_str(), format!("https://{}{path}", self.host()));
        within(self.sessions().prove(Some(session), &call)).await.unwrap().headers
    }

    pub async fn prove_body(&self, session: &str, method: Method, path: &str, body: &[u8]) -> HeaderMap {
        let call = Call::new(method.as_str(), format!("https://{}{path}", self.host()));
        let call = Call { body: Some(Digest::of(body)), ..call };
        within(self.sessions().prove(Some(session), &call)).await.unwrap().headers
    }

    /// What comes once the clock of agent and proxy has been moved on: it is moved again as long as nothing comes, because
    /// nobody sees from outside when the proxy begins to wait.
    pub async fn while_time_passes<T>(&self, step: Duration, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        within(async {
            loop {
                match tokio::time::timeout(Duration::from_millis(100), &mut work).await {
                    Ok(done) => return done,
                    Err(_) => self.agent.clock().advance(step),
                }
            }
        })
        .await
    }

    pub fn stop_proxy(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub async fn proxy_ended(&mut self) {
        (&mut self.task).await.unwrap();
    }

    pub async fn refuses_connections(&self) -> bool {
        within(TcpStream::connect(self.address)).await.is_err()
    }
}

/// `tether proxy inbound` as a process, in front of the same tool.
pub struct Process {
    pub address: SocketAddr,
    /// What it says that confines it.
    pub confined: String,
    child: Child,
    log: mpsc::UnboundedReceiver<String>,
}

impl Process {
    /// Starts it from a shell that does something `before`.
    pub async fn start(stage: &Stage, before: &str) -> Self {
        let command = format!(
            "{before}; exec {} proxy inbound --listen 127.0.0.1:0 --upstream http://{} --spiffe-id {} --custody proxy",
            env!("CARGO_BIN_EXE_tether"),
            stage.upstream,
            id("server"),
        );
        let mut child = Command::new("sh")
            .args(["-c", &command])
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", stage.agent.socket().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = lines(child.stdout.take().unwrap());
        let log = lines(child.stderr.take().unwrap());
        let (mut address, mut confined) = (None, None);
        while let Some(line) = within(printed.recv()).await {
            if let Some(by) = line.strip_prefix("confined") {
                confined = Some(by.trim().to_owned());
            }
            if let Some(listening) = line.strip_prefix("listening on") {
                address = Some(listening.trim().parse().unwrap());
            }
            if line == "ready" {
                break;
            }
        }
        let address = address.expect("it says where it listens, and then that it is ready");
        Self { address, confined: confined.expect("it says so"), child, log }
    }

    /// Waits for a line of its log.
    pub async fn logs(&mut self, what: &str) {
        while !within(self.log.recv()).await.expect("it logs").contains(what) {}
    }

    /// Whether SIGTERM ends it with success.
    pub async fn ends_in_order(&mut self) -> bool {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        within(async {
            loop {
                match self.child.try_wait().unwrap() {
                    Some(status) => return status.success(),
                    None => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of an output, read by a thread of its own.
fn lines(output: impl Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (send, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    lines
}

/// The agent's clock, as rustls asks for it.
#[derive(Debug)]
struct AgentTime(Clock);

impl TimeProvider for AgentTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).unwrap();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A connection of a client, in either version.
pub enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    pub async fn over(stream: TlsStream<TcpStream>, http2: bool) -> Self {
        let io = TokioIo::new(stream);
        if http2 {
            let (send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(async { drop(connection.await) });
            Self::Http2(send)
        } else {
            let (send, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(async { drop(connection.await) });
            Self::Http1(send)
        }
    }

    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(send) => within(send.ready()).await.is_ok(),
            Self::Http2(send) => within(send.ready()).await.is_ok(),
        }
    }

    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.try_send(request).await.expect("an answer")
    }

    pub async fn try_send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(send) => {
                let host = request.uri().authority().map(|authority| authority.as_str().parse().unwrap());
                let (mut head, body) = request.into_parts();
                if let Some(host) = host {
                    head.headers.insert("host", host);
                    head.uri = head.uri.path_and_query().unwrap().as_str().parse().unwrap();
                }
                within(send.ready()).await?;
                within(send.send_request(Request::from_parts(head, body))).await
            }
            Self::Http2(send) => within(send.send_request(request)).await,
        }
    }

    /// An answer that may take its time, on HTTP/2.
    pub fn begin(&self, request: Request<Body>) -> impl Future<Output = Response<Incoming>> + Send + 'static {
        let Self::Http2(send) = self else { panic!("only with HTTP/2") };
        let mut send = send.clone();
        async move { send.send_request(request).await.expect("an answer") }
    }

    /// Returns when no new request can be sent any more.
    pub async fn closing(&mut self, request: impl Fn() -> Request<Body>) {
        while self.try_send(request()).await.is_ok() {}
    }
}
