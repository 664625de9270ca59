//! A web server on a real loopback socket that answers as a test says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a path answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The bytes of a whole answer; then the connection ends.
    Raw(Vec<u8>),
    /// Nothing, ever.
    Nothing,
}

impl Answer {
    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self::with("200 OK", "Content-Type: application/json\r\n", &body.to_string())
    }

    pub(crate) fn with(status: &str, headers: &str, body: &str) -> Self {
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        Self::Raw([head.as_bytes(), body.as_bytes()].concat())
    }
}

/// The server; it stops when this is dropped.
pub(crate) struct Server {
    /// `https://127.0.0.1:PORT`, or with `http`.
    pub(crate) url: String,
    /// The root of its certificate in PEM.
    pub(crate) root: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<AtomicUsize>,
    last: Arc<Mutex<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// One without TLS.
    pub(crate) async fn plain() -> Self {
        Self::start(None, String::new()).await
    }

    /// One with TLS, whose certificate is for `127.0.0.1`, or for another name if `name` is one.
    pub(crate) async fn tls(name: &str) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), root_pem).await
    }

    async fn start(tls: Option<TlsAcceptor>, root: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (answers, asked, last) = <(Arc<Mutex<HashMap<_, _>>>, Arc<AtomicUsize>, Arc<Mutex<String>>)>::default();
        let shared = (answers.clone(), asked.clone(), last.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, shared) = (tls.clone(), shared.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, shared).await,
                        // Who does not trust the certificate hangs up.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, root, answers, asked, last, task }
    }

    /// From now on `path` answers so.
    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// How many requests there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// The head and body of the last request.
    pub(crate) fn last(&self) -> String {
        self.last.lock().unwrap().clone()
    }
}

type Shared = (Arc<Mutex<HashMap<String, Answer>>>, Arc<AtomicUsize>, Arc<Mutex<String>>);

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, (answers, asked, last): Shared) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let Ok(read) = stream.read(&mut buffer).await else { return };
        request.extend_from_slice(&buffer[..read]);
        // As real servers do with what is no HTTP.
        if request.first().is_some_and(|first| !first.is_ascii_uppercase()) {
            return;
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if read == 0 {
                return;
            }
            continue;
        };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() < length.unwrap_or(0) && read > 0 {
            continue;
        }
        asked.fetch_add(1, Ordering::SeqCst);
        last.lock().unwrap().clone_from(&text);
        let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = answers.lock().unwrap().get(&path).cloned();
        match answer.unwrap_or_else(|| Answer::with("404 Not Found", "", "")) {
            Answer::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            }
            Answer::Nothing => std::future::pending().await,
        }
        return;
    }
}
