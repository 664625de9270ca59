//! The Workload Endpoint: what every call meets before it reaches the Workload API.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use futures_util::stream;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorProto};
use tether::agent::{self, Deps};
use tether::base::clock::Clock;
use tether::config::{ByteSize, Config};
use tether::proto::workload::X509svidRequest;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{TestAgent, next, within};
use crate::support::raw::{self, BESIDE, RPCS};
use crate::support::{entry, is_root, jwt, names, other_user, refused, run, x509, x509_stream};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "EP-01",
        binds: "end,cli",
        says: "the endpoint speaks gRPC over cleartext HTTP/2 on a Unix socket",
        shown: Shown::Test(|| run(plain())),
    },
    Rule {
        id: "EP-02",
        binds: "end",
        says: "the endpoint exposes the Workload API",
        shown: Shown::Test(|| run(exposes())),
    },
    Rule {
        id: "EP-03",
        binds: "end",
        says: "the endpoint is local: a Unix socket, and nothing else can be configured",
        shown: Shown::Library(local),
    },
    Rule {
        id: "EP-04",
        binds: "end",
        says: "TCP is not used",
        shown: Shown::Review(
            "`config::Listen` has paths only, and `peer::Listener` is made from a Unix socket in all of its constructors",
        ),
    },
    Rule {
        id: "EP-06",
        binds: "end",
        says: "missing or differing header is InvalidArgument on every method, before anything else",
        shown: Shown::Test(|| run(header())),
    },
    Rule { id: "EP-07", binds: "end", says: "TLS is never required", shown: Shown::Test(|| run(plain())) },
    Rule {
        id: "EP-08",
        binds: "end",
        says: "a workload needs no secret, token or certificate to ask",
        shown: Shown::Test(|| run(plain())),
    },
    Rule {
        id: "EP-09",
        binds: "end",
        says: "who calls is the kernel's answer: another user gets another identity on the same socket",
        shown: Shown::TestIf(is_root, "needs root, to run a workload as another user", || run(other_uid())),
    },
    Rule {
        id: "EP-14",
        binds: "end",
        says: "an agent that sheds load or stops answers Unavailable",
        shown: Shown::Test(|| run(unavailable())),
    },
    Rule {
        id: "EP-15",
        binds: "end",
        says: "a caller without an identity gets PermissionDenied from every call that needs one",
        shown: Shown::Test(|| run(no_identity())),
    },
    Rule {
        id: "EP-16",
        binds: "end",
        says: "a method or service that does not exist is Unimplemented",
        shown: Shown::Test(|| run(unknown_methods())),
    },
    Rule {
        id: "EP-18",
        binds: "end",
        says: "SpiffeWorkloadAPI has exactly the standard's calls, messages and field numbers",
        shown: Shown::Test(|| run(descriptor())),
    },
    Rule {
        id: "EP-19",
        binds: "end",
        says: "server reflection lists SpiffeWorkloadAPI, in v1 and in v1alpha",
        shown: Shown::Test(|| run(reflection())),
    },
    Rule {
        id: "EP-20",
        binds: "end",
        says: "any user may open the socket, a stale one is replaced, and a path that is too long is refused",
        shown: Shown::Test(|| run(socket_file())),
    },
    Rule {
        id: "EP-21",
        binds: "end",
        says: "a caller that could not be examined gets Unavailable, not PermissionDenied",
        shown: Shown::Test(|| run(unexamined())),
    },
];

async fn plain() {
    let agent = TestAgent::start().await;
    // A channel of plain HTTP/2 over a Unix socket, and the one header; nothing else.
    for method in &RPCS[..2] {
        raw::call_agent(&agent, method, &["true"]).await.expect("no more is needed");
    }
}

async fn exposes() {
    let agent = TestAgent::start().await;
    assert_eq!(x509(&agent).await.svids.len(), 1);
    assert_eq!(jwt(&agent, &["demo"], "").await.unwrap().len(), 1);
    for method in &RPCS[..5] {
        let answer = raw::call_agent(&agent, method, &["true"]).await;
        assert_ne!(answer.map_err(|status| status.code()), Err(Code::Unimplemented), "{method}");
    }
}

fn local() {
    let path = Config::default().listen.workload;
    assert!(path.is_absolute());
    let tcp = "tcp://127.0.0.1:8080".to_owned();
    let source = tether::config::Source {
        flags: vec![("trust_domain".to_owned(), "example.org".to_owned()), ("listen.workload".to_owned(), tcp)],
        ..tether::config::Source::default()
    };
    source.load().expect_err("an address is no path");
}

async fn header() {
    // Nobody has an identity here: whatever looked further would answer PermissionDenied.
    let agent = TestAgent::without_entries().await;
    let wrong: [&[&str]; 9] =
        [&[], &["TRUE"], &["True"], &["1"], &[""], &["true", "true"], &["true", "false"], &["false"], &["true,true"]];
    for method in RPCS.into_iter().chain(BESIDE) {
        for values in wrong {
            let answer = raw::call_agent(&agent, method, values).await;
            let status = answer.expect_err(method);
            assert_eq!(status.code(), Code::InvalidArgument, "{method} with {values:?}: {status:?}");
            assert!(status.message().contains("workload.spiffe.io"), "{status:?}");
        }
    }
    let status = raw::call_agent(&agent, RPCS[0], &["true"]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "with the header it is looked at");
}

async fn other_uid() {
    let agent = TestAgent::without_entries().await;
    let of = |id: &str, uid: u32| {
        let id_and_match = format!("id = \"{id}\"\nmatch = [\"unix:uid:{uid}\"]\nowner = \"tests\"");
        format!("[[entry]]\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\n{id_and_match}\n")
    };
    agent.write_entries("uids.toml", &(of("root", 0) + &of("other", 4242))).await;
    assert_eq!(names([x509(&agent).await.svids[0].spiffe_id.as_str()]), ["root"]);
    assert_eq!(other_user::ask(&agent, 4242).await, "spiffe://dev.tether.internal/other");
    assert_eq!(other_user::ask(&agent, 4243).await, "PermissionDenied");
}

async fn unavailable() {
    let mut agent = TestAgent::configured(|config| config.limits.calls_per_uid = 1).await;
    let mut client = agent.workload().await;
    let mut open = x509_stream(&mut client).await;
    next(&mut open).await.unwrap();
    refused(jwt(&agent, &["demo"], "").await, Code::Unavailable, "limit");
    let told = tokio::spawn(async move { next(&mut open).await });
    agent.stop().await;
    refused(within(told).await.unwrap(), Code::Unavailable, "");
}

async fn no_identity() {
    let agent = TestAgent::without_entries().await;
    for method in [RPCS[0], RPCS[1], RPCS[3]] {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::PermissionDenied, "no registration entry");
    }
    refused(jwt(&agent, &["demo"], "").await, Code::PermissionDenied, "no registration entry");
    refused(crate::support::validate(&agent, "a.b.c").await, Code::PermissionDenied, "no registration entry");
}

async fn unknown_methods() {
    let agent = TestAgent::start().await;
    for method in [
        "/SpiffeWorkloadAPI/FetchEverything",
        "/SpiffeWorkloadAPI/fetchx509svid",
        "/WorkloadAPI/FetchX509SVID",
        "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID",
        "/tether.admin.v1.Entries/List",
        "/SpiffeWorkloadAPI",
        "/",
    ] {
        refused(raw::call_agent(&agent, method, &["true"]).await, Code::Unimplemented, "");
        refused(raw::call_agent(&agent, method, &[]).await, Code::InvalidArgument, "workload.spiffe.io");
    }
}

fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// One question to server reflection in its newer version.
async fn reflect(
    agent: &TestAgent,
    question: v1::server_reflection_request::MessageRequest,
) -> v1::server_reflection_response::MessageResponse {
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(agent.channel().await);
    let question = v1::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let answers = within(client.server_reflection_info(asked(stream::iter([question])))).await.unwrap();
    next(&mut answers.into_inner()).await.unwrap().message_response.unwrap()
}

async fn reflection() {
    let agent = TestAgent::start().await;
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(listed) = reflect(&agent, list).await
    else {
        panic!("a list")
    };
    assert!(listed.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"), "{listed:?}");
    assert!(!listed.service.iter().any(|service| service.name.starts_with("tether.admin")), "{listed:?}");

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(agent.channel().await);
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let question = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let answers = within(client.server_reflection_info(asked(stream::iter([question])))).await.unwrap();
    let answer = next(&mut answers.into_inner()).await.unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(listed) = answer else {
        panic!("a list")
    };
    assert!(listed.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"), "{listed:?}");
}

/// The wire definition of the standard: each call with its messages, `>` where the answer is a stream.
const CALLS: [&str; 7] = [
    "FetchX509SVID X509SVIDRequest > X509SVIDResponse",
    "FetchX509Bundles X509BundlesRequest > X509BundlesResponse",
    "FetchJWTSVID JWTSVIDRequest - JWTSVIDResponse",
    "FetchJWTBundles JWTBundlesRequest > JWTBundlesResponse",
    "ValidateJWTSVID ValidateJWTSVIDRequest - ValidateJWTSVIDResponse",
    "FetchWITSVID WITSVIDRequest > WITSVIDResponse",
    "FetchWITBundles WITBundlesRequest > WITBundlesResponse",
];

/// Each message with its fields in the order of their numbers.
const MESSAGES: [(&str, &str); 17] = [
    ("JWTBundlesRequest", ""),
    ("JWTBundlesResponse", "1 bundles map<string,bytes>"),
    ("JWTSVID", "1 spiffe_id string, 2 svid string, 3 hint string"),
    ("JWTSVIDRequest", "1 audience repeated string, 2 spiffe_id string"),
    ("JWTSVIDResponse", "1 svids repeated JWTSVID"),
    ("ValidateJWTSVIDRequest", "1 audience string, 2 svid string"),
    ("ValidateJWTSVIDResponse", "1 spiffe_id string, 2 claims google.protobuf.Struct"),
    ("WITBundlesRequest", ""),
    ("WITBundlesResponse", "1 bundles map<string,string>"),
    ("WITSVID", "1 spiffe_id string, 2 wit_svid string, 3 wit_svid_key string, 4 hint string"),
    ("WITSVIDRequest", "1 spiffe_id string"),
    ("WITSVIDResponse", "1 svids repeated WITSVID"),
    ("X509BundlesRequest", ""),
    ("X509BundlesResponse", "1 crl repeated bytes, 2 bundles map<string,bytes>"),
    ("X509SVID", "1 spiffe_id string, 2 x509_svid bytes, 3 x509_svid_key bytes, 4 bundle bytes, 5 hint string"),
    ("X509SVIDRequest", ""),
    ("X509SVIDResponse", "1 svids repeated X509SVID, 2 crl repeated bytes, 3 federated_bundles map<string,bytes>"),
];

fn fields(message: &DescriptorProto) -> String {
    let kind = |field: &prost_types::FieldDescriptorProto| match field.r#type() {
        Type::String => "string".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::Message => field.type_name().trim_start_matches('.').to_owned(),
        other => format!("{other:?}"),
    };
    let mut sorted: Vec<_> = message.field.iter().collect();
    sorted.sort_by_key(|field| field.number());
    let described = sorted.into_iter().map(|field| {
        let named = kind(field);
        let entry = message.nested_type.iter().find(|nested| named.ends_with(&format!(".{}", nested.name())));
        let of = match (entry, field.label()) {
            (Some(entry), _) => format!("map<{},{}>", kind(&entry.field[0]), kind(&entry.field[1])),
            (None, Label::Repeated) => format!("repeated {named}"),
            (None, _) => named,
        };
        format!("{} {} {of}", field.number(), field.name())
    });
    described.collect::<Vec<_>>().join(", ")
}

async fn descriptor() {
    let agent = TestAgent::start().await;
    let symbol = v1::server_reflection_request::MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".to_owned());
    let v1::server_reflection_response::MessageResponse::FileDescriptorResponse(files) = reflect(&agent, symbol).await
    else {
        panic!("a file")
    };
    let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
    assert_eq!((file.package(), file.syntax()), ("", "proto3"));
    let [service] = &file.service[..] else { panic!("one service") };
    assert_eq!(service.name(), "SpiffeWorkloadAPI");
    let calls: Vec<String> = service
        .method
        .iter()
        .map(|call| {
            assert!(!call.client_streaming());
            let arrow = if call.server_streaming() { '>' } else { '-' };
            let name = |name: &str| name.trim_start_matches('.').to_owned();
            format!("{} {} {arrow} {}", call.name(), name(call.input_type()), name(call.output_type()))
        })
        .collect();
    assert_eq!(calls, CALLS);
    let messages: BTreeMap<&str, String> = file.message_type.iter().map(|m| (m.name(), fields(m))).collect();
    let expected: BTreeMap<&str, String> =
        MESSAGES.iter().map(|(name, fields)| (*name, (*fields).to_owned())).collect();
    assert_eq!(messages, expected);
}

async fn socket_file() {
    let mut agent = TestAgent::start().await;
    let socket = agent.socket().to_owned();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket) & 0o666, 0o666, "to connect is to write");
    assert_eq!(mode(socket.parent().unwrap()), 0o755, "nobody else can put a socket there");

    agent.stop().await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket(), "nobody listens on it");
    agent.restart().await;
    assert_eq!(x509(&agent).await.svids.len(), 1);

    let mut config = Config::for_dev(&agent.dir().join("long"));
    config.listen.workload = agent.dir().join("x".repeat(107)).join("workload.sock");
    let (clock, _) = Clock::manual(Clock::system().now());
    let error = agent::build(config, Deps { clock, ..Deps::default() }).await.err().expect("the path is too long");
    assert!(error.to_string().contains("too long for a socket"), "{error}");
}

async fn unexamined() {
    let agent = TestAgent::configured(|config| {
        config.dev = false;
        std::fs::create_dir(config.state_dir.parent().unwrap()).unwrap();
        std::fs::create_dir(&config.entries_dir).unwrap();
        std::fs::create_dir(&config.policies_dir).unwrap();
        config.attest.unix.max_hash = ByteSize::kib(1);
    })
    .await;
    let digest = format!("match = [\"unix:sha256:{}\"]", "0".repeat(64));
    let unknowable =
        entry("digest", "digest", "").replace(&format!("match = [\"unix:uid:{}\"]", crate::harness::uid()), &digest);
    agent.write_entries("digest.toml", &unknowable).await;
    let mut client = agent.workload().await;
    let answer = within(client.fetch_x509svid(X509svidRequest {})).await;
    let answer = match answer {
        Ok(stream) => next(&mut stream.into_inner()).await,
        Err(status) => Err(status),
    };
    refused(answer, Code::Unavailable, "digest");
}
