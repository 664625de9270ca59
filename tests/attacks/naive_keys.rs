//! What attacks on held keys must succeed against: a key service that signs whatever it is given, for everybody who
//! knows the handle of a key or the id of a session, and in the name of whichever process is named by number; and a
//! verifier that believes what is signed. Who connects is asked of `SO_PEERCRED`, and nothing comes of it.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use tether::jwt::JwtSigner;
use tether::proto::session as wire;
use tether::proto::session::sessions_server::{Sessions, SessionsServer};
use tether::x509::{KeyType, PrivateKey};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone, Default)]
pub struct NaiveKeys(Arc<Mutex<HashMap<String, Arc<PrivateKey>>>>);

impl NaiveKeys {
    /// Serves for good.
    pub async fn serve(self, listener: UnixListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let connections = stream::unfold(listener, |listener| async move {
            let connection = listener.accept().await.map(|(connection, _)| connection);
            Some((connection, listener))
        });
        Server::builder().add_service(SessionsServer::new(self)).serve_with_incoming(connections).await.unwrap();
    }

    fn make(&self) -> String {
        let mut keys = self.0.lock().unwrap();
        let handle = format!("key-{}", keys.len());
        keys.insert(handle.clone(), Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap()));
        handle
    }

    fn find(&self, handle: &str) -> Result<Arc<PrivateKey>, Status> {
        self.0.lock().unwrap().get(handle).cloned().ok_or_else(|| Status::not_found("no such key"))
    }
}

#[tonic::async_trait]
impl Sessions for NaiveKeys {
    type HoldX509Stream = Pin<Box<dyn Stream<Item = Result<wire::HoldX509Response, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::Session, Status>> + Send>>;

    async fn hold_x509(&self, _: Request<wire::HoldX509Request>) -> Result<Response<Self::HoldX509Stream>, Status> {
        let svid = wire::HeldX509 { key: self.make(), ..wire::HeldX509::default() };
        let answer = wire::HoldX509Response { svids: vec![svid], ..wire::HoldX509Response::default() };
        Ok(Response::new(stream::iter([Ok(answer)]).boxed()))
    }

    async fn sign_tls(
        &self,
        request: Request<wire::SignTlsRequest>,
    ) -> Result<Response<wire::SignTlsResponse>, Status> {
        let request = request.into_inner();
        let signature = self.find(&request.key)?.sign(&request.content).unwrap();
        Ok(Response::new(wire::SignTlsResponse { signature: signature.into() }))
    }

    async fn hold_wit(&self, _: Request<wire::HoldWitRequest>) -> Result<Response<wire::HoldWitResponse>, Status> {
        Ok(Response::new(wire::HoldWitResponse { key: self.make(), ..wire::HoldWitResponse::default() }))
    }

    async fn prove(&self, request: Request<wire::ProveRequest>) -> Result<Response<wire::ProveResponse>, Status> {
        let request = request.into_inner();
        let handle = if request.session.is_empty() { &request.key } else { &request.session };
        let signer = JwtSigner::new(&*self.find(handle)?).unwrap();
        let proof = signer.sign(&json!({ "aud": request.uri, "htm": request.method })).unwrap();
        let headers = HashMap::from([("Authorization".to_owned(), format!("WPT {proof}"))]);
        Ok(Response::new(wire::ProveResponse { headers, ..wire::ProveResponse::default() }))
    }

    async fn start(&self, _: Request<wire::StartRequest>) -> Result<Response<wire::Session>, Status> {
        Ok(Response::new(session(self.make())))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::Session>, Status> {
        Ok(Response::new(session(request.into_inner().session)))
    }

    async fn list(&self, _: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let sessions = self.0.lock().unwrap().keys().cloned().map(session).collect();
        Ok(Response::new(wire::ListResponse { sessions }))
    }

    async fn heartbeat(&self, _: Request<wire::HeartbeatRequest>) -> Result<Response<wire::Session>, Status> {
        Err(no_sessions())
    }

    async fn mint(&self, _: Request<wire::MintRequest>) -> Result<Response<wire::MintResponse>, Status> {
        Err(no_sessions())
    }

    async fn delegate(&self, _: Request<wire::DelegateRequest>) -> Result<Response<wire::Session>, Status> {
        Ok(Response::new(session(self.make())))
    }

    async fn end(&self, _: Request<wire::EndRequest>) -> Result<Response<wire::DisposalReceipt>, Status> {
        Ok(Response::new(wire::DisposalReceipt::default()))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(stream::iter([Ok(session(request.into_inner().session))]).boxed()))
    }
}

/// A session is a key with a name, and nothing else.
fn session(id: String) -> wire::Session {
    wire::Session { id, ..wire::Session::default() }
}

fn no_sessions() -> Status {
    Status::unimplemented("keys alone")
}
