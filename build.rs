//! Compiles `proto/` into `OUT_DIR` with a compiler written in Rust, so that no protoc is needed; nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Not in a source archive, and not in a worktree.
const HEAD: &str = ".git/HEAD";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = [
        "proto/workload.proto",
        "proto/session.proto",
        "proto/admin.proto",
        "proto/export.proto",
        "proto/envoy/secret.proto",
        "proto/envoy/tls.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;

    let mut config = prost_build::Config::new();
    // Certificates and bundles are shared between streams: reference-counted buffers, not copies.
    config.bytes(["."]);
    tonic_prost_build::configure()
        .build_server(std::env::var_os("CARGO_FEATURE_AGENT").is_some())
        .compile_fds_with_config(descriptors, config)?;

    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rustc-env=TETHER_COMMIT={}", git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default());
    println!("cargo:rustc-env=TETHER_DATE={}", git(&["log", "-1", "--format=%cs"]).unwrap_or_default());
    if Path::new(HEAD).exists() {
        // A file that is not there counts as changed at every build.
        println!("cargo:rerun-if-changed={HEAD}");
    }
    Ok(())
}

/// What git says of what this is built from: the commit for `--version`, its date for the manual; nothing in a source archive.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
