//! `tether backup` and `tether restore`.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;

/// `tether backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file, made with mode 0600; one that is there is replaced.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Encrypt the backup with the passphrase in this file (`head -c 24 /dev/urandom | base64 > FILE` makes a good one), and
    /// put keys in it as they are inside: it can then be restored on a host without the key-wrapping key of this one.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `tether restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file that `tether backup` made.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The file with its passphrase, if it is encrypted.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
}
