//! A directory of manifests, read as `remora-destination` would: the flags that verbs share which do.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use remora_destination::{
    config::{Config, NoConfig},
    watch::directory::Reading,
};

use crate::{USAGE, complain};

/// Where the manifests are, and what of the controller's flags they depend on.
#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// The directory.
    #[arg(long = "manifests", value_name = "DIR")]
    directory: PathBuf,
    /// Domain of the cluster's DNS.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Opaque ports of whatever has no annotation, instead of remora-destination's default.
    #[arg(long, value_name = "PORTS")]
    default_opaque_ports: Option<String>,
}

impl Manifests {
    /// Reads the directory; a failure has been said.
    pub(crate) fn read(&self, verb: &str) -> Result<(Reading, Config), ExitCode> {
        self.read_with(verb, &[])
    }

    /// The same with further flags of remora-destination.
    pub(crate) fn read_with(&self, verb: &str, more: &[String]) -> Result<(Reading, Config), ExitCode> {
        let config = self.config(more).map_err(|why| {
            complain(&format!("{verb}: {why}"));
            ExitCode::from(USAGE)
        })?;
        let reading = Reading::of(&config.manifests);
        if let Some(why) = &reading.incomplete {
            complain(&format!("{verb}: {why}"));
            return Err(ExitCode::FAILURE);
        }
        Ok((reading, config))
    }

    /// The configuration of the process that would read this directory, so that both read alike.
    fn config(&self, more: &[String]) -> Result<Config, String> {
        let mut flags = vec![
            "remora-destination".to_owned(),
            "--plaintext".to_owned(),
            "--grpc-addr=127.0.0.1:0".to_owned(),
            "--policy-addr=127.0.0.1:0".to_owned(),
            format!("--manifests={}", self.directory.display()),
            format!("--cluster-domain={}", self.cluster_domain),
        ];
        flags.extend(self.default_opaque_ports.iter().map(|ports| format!("--default-opaque-ports={ports}")));
        flags.extend_from_slice(more);
        Config::read(flags).map_err(|why| match why {
            NoConfig::Usage(error) => error.to_string(),
            NoConfig::Wrong(mistakes) => mistakes.to_string(),
        })
    }
}
