//! Drives the `spiffe`, `spiffe-rustls` and `spiffe-rustls-tokio` crates against a Workload API socket. See
//! ../README.md for the command line all languages share.

use std::error::Error;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use serde_json::json;
use spiffe::x509_source::SvidPicker;
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, X509Source, X509Svid};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use spiffe_rustls_tokio::{TlsAcceptor, TlsConnector};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const USAGE: &str = "usage: fetch AUDIENCE | watch N | sources AUDIENCE | validate AUDIENCE TOKEN | mtls-server ADDR ID | mtls-client ADDR ID [--hold]";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["fetch", audience] => fetch(audience).await,
        ["watch", updates] => watch(updates.parse()?).await,
        ["sources", audience] => sources(audience).await,
        ["validate", audience, token] => validate(audience, token).await,
        ["mtls-server", addr, client_id] => serve(addr, client_id).await,
        ["mtls-client", addr, server_id] => connect(addr, server_id, false).await,
        ["mtls-client", addr, server_id, "--hold"] => connect(addr, server_id, true).await,
        _ => Err(USAGE.into()),
    }
}

async fn fetch(audience: &str) -> Result<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let context = client.fetch_x509_context().await?;
    let ids: Vec<String> = context.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
    let own = InteropSvid.pick_svid(context.svids()).ok_or("no SVID with the hint `rust`")?;

    let bundles = client.fetch_x509_bundles().await?;
    let trust_domains: Vec<String> = bundles.iter().map(|(name, _)| name.to_string()).collect();

    let token = client.fetch_jwt_svid([audience], Some(context.svids()[own].spiffe_id())).await?;
    let jwt_bundles = client.fetch_jwt_bundles().await?;
    let verified = JwtSvid::parse_and_validate(token.token(), &jwt_bundles, &[audience])?;
    println!(
        "{}",
        json!({"spiffe_ids": ids, "trust_domains": trust_domains, "jwt_sub": verified.spiffe_id().to_string()})
    );
    Ok(())
}

async fn watch(updates: usize) -> Result<()> {
    let source = source().await?;
    let mut changes = source.updated();
    let mut printed = print_svid(&source)?;
    let mut seen = 1;
    while seen < updates {
        changes.changed().await?;
        // The source syncs on one stream and then watches on another: the second may bring the same SVID again.
        if serial(&*source.svid()?)? != printed {
            printed = print_svid(&source)?;
            seen += 1;
        }
    }
    Ok(())
}

/// Keeps an X.509 source and a JWT source open, and fetches a token for each line of its input.
async fn sources(audience: &str) -> Result<()> {
    let source = source().await?;
    let tokens = JwtSource::new().await?;
    tokio::spawn(print_updates(source.clone()));
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        let answer = async {
            let svid = source.svid()?;
            let token = tokens.fetch_jwt_svid_with_id([audience], Some(svid.spiffe_id())).await?;
            let current = serial(&svid)?;
            Ok::<_, Box<dyn Error>>(json!({"asked": line, "current": current, "token": token.token()}))
        };
        println!("{}", answer.await.unwrap_or_else(|error| json!({"asked": line, "error": with_sources(&*error)})));
    }
    Ok(())
}

async fn validate(audience: &str, token: &str) -> Result<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let svid = client.validate_jwt_token(audience, token).await?;
    println!("{}", json!({"spiffe_id": svid.spiffe_id().to_string()}));
    Ok(())
}

async fn serve(addr: &str, client_id: &str) -> Result<()> {
    let source = source().await?;
    let config = mtls_server(source.clone()).authorize(authorizer::exact([client_id])?).build()?;
    let acceptor = TlsAcceptor::new(Arc::new(config));
    let listener = TcpListener::bind(addr).await?;
    println!("{}", json!({"listening": listener.local_addr()?.to_string()}));
    tokio::spawn(print_updates(source));
    loop {
        let (tcp, _) = listener.accept().await?;
        tokio::spawn(echo(acceptor.clone(), tcp));
    }
}

/// Answers every line with the client's verified SPIFFE ID and the line.
async fn echo(acceptor: TlsAcceptor, tcp: TcpStream) {
    let (tls, peer) = match acceptor.accept(tcp).await {
        Ok(accepted) => accepted,
        Err(error) => return println!("{}", json!({"refused": with_sources(&error)})),
    };
    let Some(peer) = peer.spiffe_id() else { return };
    let (reader, mut writer) = tokio::io::split(tls);
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if writer.write_all(format!("{peer} {line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn connect(addr: &str, server_id: &str, hold: bool) -> Result<()> {
    let source = source().await?;
    let config = mtls_client(source.clone()).authorize(authorizer::exact([server_id])?).build()?;
    // The name only fills SNI: the verifier decides by SPIFFE ID.
    let name = ServerName::try_from("interop.invalid")?;
    let connector = TlsConnector::new(Arc::new(config));
    let (tls, peer) = connector.connect_addr(addr.parse()?, name).await.map_err(|error| with_sources(&error))?;
    let peer = peer.require_spiffe_id()?.to_string();

    let (reader, mut writer) = tokio::io::split(tls);
    let mut answers = BufReader::new(reader).lines();
    let mut exchange = async |line: String| -> Result<()> {
        writer.write_all(format!("{line}\n").as_bytes()).await?;
        let answer = answers.next_line().await?.ok_or("the server closed the connection")?;
        println!("{}", json!({"peer": peer, "echo": answer}));
        Ok(())
    };
    if !hold {
        return exchange("hello".into()).await;
    }
    tokio::spawn(print_updates(source));
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        exchange(line).await?;
    }
    Ok(())
}

async fn source() -> Result<X509Source> {
    Ok(X509Source::builder().picker(InteropSvid).build().await?)
}

/// Takes the SVID meant for these tests; none makes the source fail rather than use another identity.
struct InteropSvid;

impl SvidPicker for InteropSvid {
    fn pick_svid(&self, svids: &[Arc<X509Svid>]) -> Option<usize> {
        svids.iter().position(|svid| svid.hint() == Some("rust"))
    }
}

async fn print_updates(source: X509Source) {
    let mut changes = source.updated();
    while print_svid(&source).is_ok() && changes.changed().await.is_ok() {}
}

/// Prints the current SVID and gives its serial number.
fn print_svid(source: &X509Source) -> Result<String> {
    let svid = source.svid()?;
    let serial = serial(&svid)?;
    println!("{}", json!({"serial": serial, "spiffe_id": svid.spiffe_id().to_string()}));
    Ok(serial)
}

fn serial(svid: &X509Svid) -> Result<String> {
    let (_, leaf) = x509_parser::parse_x509_certificate(svid.cert_chain()[0].as_bytes())?;
    Ok(leaf.tbs_certificate.serial.to_str_radix(16))
}

/// The whole chain of reasons: the outermost message alone only says that TLS failed.
fn with_sources(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        message = format!("{message}: {inner}");
        source = inner.source();
    }
    message
}
