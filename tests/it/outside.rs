//! JWT-SVIDs at services outside that speak OpenID Connect: a verifier as strict as all of their published rules together,
//! which knows nothing but the issuer's URL and what the agent answers over HTTP. docs/outside-services.md has the rules.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tether::config::Config;
use tether::proto::admin::RotateAuthorityRequest;
use tether::proto::workload::JwtsvidRequest;
use tether::x509::KeyType;
use time::OffsetDateTime;

use crate::harness::TestAgent;
use crate::http;

const ISSUER: &str = "https://oidc.example.org/tether";
const AUDIENCE: &str = "sts.example.com";
/// The shortest bound that any of them has on what lies between `iat` and `exp`.
const LONGEST_LIFE: i64 = 3600;

/// What one of the services takes.
struct Service {
    issuer: &'static str,
    audience: &'static str,
    algorithms: &'static [&'static str],
}

const ANY: Service = Service { issuer: ISSUER, audience: AUDIENCE, algorithms: &["ES256", "RS256"] };
/// As the strictest of them want it.
const RSA_ONLY: Service = Service { algorithms: &["RS256"], ..ANY };

fn decoded(text: &str) -> Value {
    serde_json::from_slice(&octets(text)).expect("JSON")
}

fn octets(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url without padding")
}

/// What is at a URL below the issuer, as the web server in front of the agent would give it out.
async fn get(agent: SocketAddr, url: &str) -> Result<Value, String> {
    let path = url.strip_prefix("https://oidc.example.org").ok_or("it is not the issuer's")?;
    let answer = http::ask(agent, &format!("GET {path} HTTP/1.1\r\nHost: oidc.example.org\r\n\r\n")).await;
    let is_json = answer.head.to_ascii_lowercase().contains("content-type: application/json");
    match (answer.status, is_json) {
        (200, true) => serde_json::from_str(&answer.body).map_err(|error| error.to_string()),
        other => Err(format!("{url}: {other:?}")),
    }
}

impl Service {
    /// The subject of a token, or the first rule that it breaks.
    async fn verify(&self, token: &str, agent: SocketAddr, now: OffsetDateTime) -> Result<String, String> {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, signature] = parts[..] else { return Err("not three parts".into()) };
        let signed = format!("{header}.{claims}");
        let (header, claims) = (decoded(header), decoded(claims));

        if claims["iss"] != self.issuer {
            return Err(format!("`iss` is {}", claims["iss"]));
        }
        let discovery = get(agent, &format!("{}/.well-known/openid-configuration", self.issuer)).await?;
        if discovery["issuer"] != self.issuer {
            return Err("the document is another issuer's".into());
        }
        for required in ["response_types_supported", "subject_types_supported"] {
            let listed = discovery[required].as_array().is_some_and(|values| !values.is_empty());
            if !listed {
                return Err(format!("the document has no `{required}`"));
            }
        }
        let algorithm = header["alg"].as_str().ok_or("no `alg`")?;
        let offered = discovery["id_token_signing_alg_values_supported"].as_array().ok_or("no algorithms")?;
        if !offered.contains(&header["alg"]) || !self.algorithms.contains(&algorithm) {
            return Err(format!("`alg` is {algorithm}"));
        }
        if header.get("crit").is_some() || !matches!(header["typ"].as_str(), None | Some("JWT")) {
            return Err("the header wants what nobody knows".into());
        }

        let jwks = get(agent, discovery["jwks_uri"].as_str().ok_or("no `jwks_uri`")?).await?;
        let keys = jwks["keys"].as_array().ok_or("no `keys`")?;
        let ids: HashSet<&str> = keys.iter().filter_map(|key| key["kid"].as_str()).collect();
        if ids.len() != keys.len() {
            return Err("keys without a `kid` of their own".into());
        }
        if keys.iter().any(|key| key.get("x5c").is_some() || key.get("d").is_some()) {
            return Err("keys with what does not belong there".into());
        }
        let kid = header["kid"].as_str().ok_or("no `kid`")?;
        let key = keys.iter().find(|key| key["kid"] == kid).ok_or("the key is not published")?;
        if key["use"] != "sig" || key["alg"] != algorithm {
            return Err("the key is for something else".into());
        }
        let (message, signature) = (signed.as_bytes(), octets(signature));
        let member = |name: &str| octets(key[name].as_str().unwrap_or_default());
        let good = match algorithm {
            "ES256" => {
                let point = [vec![4], member("x"), member("y")].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, &signature)
            }
            _ => {
                let public = RsaPublicKeyComponents { n: member("n"), e: member("e") };
                public.verify(&RSA_PKCS1_2048_8192_SHA256, message, &signature)
            }
        };
        good.map_err(|_| "the signature is wrong")?;

        // One audience, which is ours; as a text or as a list of one.
        let audience = match &claims["aud"] {
            Value::Array(several) if several.len() == 1 => &several[0],
            one => one,
        };
        if audience != self.audience {
            return Err(format!("`aud` is {}", claims["aud"]));
        }
        let whole = |name: &str| claims[name].as_i64().ok_or(format!("`{name}` is no whole number"));
        let (issued, ends, now) = (whole("iat")?, whole("exp")?, now.unix_timestamp());
        if issued > now || ends <= now || ends <= issued || ends - issued > LONGEST_LIFE {
            return Err(format!("issued at {issued}, ends at {ends}, and it is {now}"));
        }
        if claims["jti"].as_str().is_none_or(str::is_empty) {
            return Err("no `jti`, so a replay could not be told".into());
        }
        claims["sub"].as_str().map(str::to_owned).ok_or("no `sub`".into())
    }
}

async fn agent(configure: impl FnOnce(&mut Config)) -> TestAgent {
    TestAgent::configured(|config| {
        config.http.address = Some("127.0.0.1:0".parse().unwrap());
        config.authority.jwt_issuer = Some(ISSUER.to_owned());
        configure(config);
    })
    .await
}

async fn token(agent: &TestAgent, audience: &[&str]) -> String {
    let audience = audience.iter().map(|audience| (*audience).to_owned()).collect();
    let request = JwtsvidRequest { audience, spiffe_id: String::new() };
    let answer = agent.workload().await.fetch_jwtsvid(request).await.unwrap().into_inner();
    answer.svids[0].svid.clone()
}

#[tokio::test]
async fn a_strict_verifier_takes_tokens_by_what_is_published_alone_with_either_kind_of_key() {
    for (kind, algorithm, strictest) in [(KeyType::EcP256, "ES256", &ANY), (KeyType::Rsa2048, "RS256", &RSA_ONLY)] {
        let agent = agent(|config| config.authority.jwt_key_type = Some(kind)).await;
        let token = token(&agent, &[AUDIENCE]).await;
        assert_eq!(decoded(token.split('.').next().unwrap())["alg"], algorithm);
        let subject = strictest.verify(&token, agent.http(), agent.clock().now()).await.unwrap();
        assert!(subject.starts_with("spiffe://dev.tether.internal/user/"), "{subject}");
    }
}

#[tokio::test]
async fn a_strict_verifier_refuses_what_is_not_for_it() {
    let agent = agent(|_| ()).await;
    let (http, now) = (agent.http(), agent.clock().now());
    let good = token(&agent, &[AUDIENCE]).await;
    let refused = |service: Service, token: String, now: OffsetDateTime| async move {
        service.verify(&token, http, now).await.unwrap_err()
    };
    assert!(refused(RSA_ONLY, good.clone(), now).await.contains("`alg` is ES256"));
    assert!(refused(Service { audience: "other.example.com", ..ANY }, good.clone(), now).await.contains("`aud`"));
    let other = Service { issuer: "https://oidc.example.org", ..ANY };
    assert!(refused(other, good.clone(), now).await.contains("`iss`"));
    assert!(refused(ANY, token(&agent, &[AUDIENCE, "other.example.com"]).await, now).await.contains("`aud`"));
    assert!(refused(ANY, good.clone(), now + Duration::from_secs(301)).await.contains("ends at"));
    assert!(refused(ANY, good, now - Duration::from_secs(60)).await.contains("issued at"));
}

#[tokio::test]
async fn a_new_key_is_published_a_day_before_it_signs_and_the_old_one_until_its_last_token_has_ended() {
    let agent = agent(|_| ()).await;
    let first = token(&agent, &[AUDIENCE]).await;
    let kid = |token: &str| decoded(token.split('.').next().unwrap())["kid"].clone();
    let url = format!("{ISSUER}/jwks.json");
    let published = async || -> Vec<Value> {
        let jwks = get(agent.http(), &url).await.unwrap();
        jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect()
    };
    assert_eq!(published().await, [kid(&first)]);
    let rotate = RotateAuthorityRequest { kind: "jwt".to_owned(), ..RotateAuthorityRequest::default() };
    agent.authorities().await.rotate(rotate).await.unwrap();
    let cached = published().await;
    assert_eq!(cached.len(), 2);
    // A service that looked then, and not again for most of a day.
    agent.clock().advance(Duration::from_secs(23 * 3600));
    assert_eq!(kid(&token(&agent, &[AUDIENCE]).await), kid(&first));
    agent.clock().advance(Duration::from_secs(3601));
    let mut second = token(&agent, &[AUDIENCE]).await;
    while kid(&second) == kid(&first) {
        tokio::task::yield_now().await;
        second = token(&agent, &[AUDIENCE]).await;
    }
    assert!(cached.contains(&kid(&second)), "it signs with a key that was not published a day ago");
    assert!(published().await.contains(&kid(&first)), "its last token is still out");
    ANY.verify(&second, agent.http(), agent.clock().now()).await.unwrap();
}

#[tokio::test]
async fn the_files_for_a_web_server_are_what_the_agent_serves_and_nothing_is_written_without_an_issuer() {
    let agent = agent(|_| ()).await;
    let dir = agent.dir().join("site");
    let run = {
        let (socket, dir) = (agent.admin_socket().to_owned(), dir.clone());
        move || {
            let program = Command::new(env!("CARGO_BIN_EXE_tether"))
                .args(["bundle", "export", "--oidc"])
                .arg(dir)
                .arg("--socket")
                .arg(socket)
                .output();
            program.unwrap()
        }
    };
    let done = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for name in [".well-known/openid-configuration", "jwks.json"] {
        let written: Value = serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap();
        assert_eq!(written, get(agent.http(), &format!("{ISSUER}/{name}")).await.unwrap(), "{name}");
    }
    // Without the issuer's path, for a web server that leaves it out.
    let answer = http::ask(agent.http(), "GET /jwks.json HTTP/1.1\r\nHost: agent\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    let posted = http::ask(agent.http(), "POST /jwks.json HTTP/1.1\r\nHost: agent\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(posted.status, 405);

    let nameless = TestAgent::configured(|config| config.http.address = Some("127.0.0.1:0".parse().unwrap())).await;
    let answer = http::ask(nameless.http(), "GET /jwks.json HTTP/1.1\r\nHost: agent\r\n\r\n").await;
    assert_eq!(answer.status, 404);
    assert!(
        !decoded(token(&nameless, &[AUDIENCE]).await.split('.').nth(1).unwrap())
            .as_object()
            .unwrap()
            .contains_key("iss")
    );
}
