//! A small agent: begins a session, calls a tool in it, ends it, and shows that nothing is left to call with:
//!
//! ```text
//! cargo run --example agent_session -- http://127.0.0.1:8300/search
//! ```
//!
//! It is registered with the agent that `SPIFFE_ENDPOINT_SOCKET` names. `verifying_tool` is a tool to call.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tether::client::session::{Call, Digest, NewSession, SessionClient, SessionError, State};
use tokio::net::TcpStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::args().nth(1).ok_or("usage: agent_session URI")?;
    let tool = uri.rsplit('/').next().unwrap_or_default().to_owned();
    let sessions = SessionClient::from_env()?;

    let wish = NewSession { scopes: vec![format!("tool:{tool}")], ..NewSession::new("demo/search", uri.as_str()) };
    let mut session = sessions.start(&wish).await?;
    if let State::PendingApproval { approval } = &session.state {
        println!("waiting: an approver runs `tether approval approve {approval}`");
        session = sessions.until_active(&session.id).await?;
    }
    println!("session {} as {} until {}", session.id, session.spiffe_id, session.expires_at);

    let body = Bytes::from_static(b"{\"query\":\"tether\"}");
    let call = Call { tool, body: Some(Digest::of(&body)), ..Call::new("POST", uri.as_str()) };
    println!("{}", send(&sessions, &session.id, &call, body.clone()).await?);

    let receipt = sessions.end(Some(&session.id)).await?;
    println!("ended: {} keys wiped, {} credentials revoked", receipt.keys_wiped, receipt.revoked.len());
    match sessions.prove(Some(&session.id), &call).await {
        Err(SessionError::Ended { reason, .. }) => println!("nothing can be proven any more: {reason}"),
        other => return Err(format!("a proof after the end: {other:?}").into()),
    }
    Ok(())
}

/// Proves one request and sends it.
async fn send(
    sessions: &SessionClient,
    session: &str,
    call: &Call,
    body: Bytes,
) -> Result<String, Box<dyn std::error::Error>> {
    let proof = match sessions.prove(Some(session), call).await {
        Err(SessionError::WaitingForApproval { approval, .. }) => {
            return Ok(format!("not yet: an approver runs `tether approval approve {approval}`, then call again"));
        }
        proven => proven?,
    };
    let uri: Uri = call.uri.parse()?;
    let authority = uri.authority().ok_or("the URI has no host")?.as_str();
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(authority).await?)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(call.method.as_str()).uri(uri.path()).body(Full::new(body))?;
    request.headers_mut().insert(header::HOST, authority.parse()?);
    request.headers_mut().extend(proof.headers);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{status}: {}", String::from_utf8_lossy(&body).trim_end()))
}
