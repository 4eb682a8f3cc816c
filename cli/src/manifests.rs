//! A directory of manifests, read as `remora-destination` would: the flags that verbs share which do. What was never in a
//! cluster is taken for what a cluster would make of it.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::Args;
use remora_destination::{
    config::{Config, NoConfig},
    view::Settings,
    watch::directory::Reading,
};
use remora_injector::{
    config::InjectorConfig,
    suppose::{Supposed, suppose},
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

/// What a directory held.
pub(crate) struct Read {
    pub(crate) reading: Reading,
    pub(crate) config: Config,
    /// What of it was supposed, for people; nothing if nothing was.
    pub(crate) supposed: Vec<String>,
}

impl Manifests {
    /// Reads the directory, with further flags of remora-destination; a failure has been said.
    pub(crate) fn read(&self, verb: &str, more: &[String]) -> Result<Read, ExitCode> {
        let config = self.config(more).map_err(|why| {
            complain(&format!("{verb}: {why}"));
            ExitCode::from(USAGE)
        })?;
        let mut reading = Reading::of(&config.manifests);
        if let Some(why) = &reading.incomplete {
            complain(&format!("{verb}: {why}"));
            return Err(ExitCode::FAILURE);
        }
        let texts: BTreeMap<String, String> = reading
            .files
            .iter()
            .filter_map(|(name, text)| Some((name.clone(), text.as_ref().ok()?.clone())))
            .collect();
        let Supposed { files, pods, services, kept_out } = suppose(&texts, &injector(&config.settings));
        reading.files.extend(files.into_iter().map(|(name, text)| (name, Ok(text))));
        let mut supposed = Vec::new();
        if pods + services > 0 {
            supposed.push(format!(
                "never in a cluster: {} and {}, whose addresses are supposed; each workload is taken to have one pod",
                counted(services, "Service"),
                counted(pods, "pod"),
            ));
        }
        supposed.extend(kept_out);
        Ok(Read { reading, config, supposed })
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

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// An injector for the control plane that these are the settings of.
fn injector(settings: &Settings) -> InjectorConfig {
    InjectorConfig {
        control_namespace: settings.control_namespace.clone(),
        trust_domain: settings.trust_domain.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        cluster_networks: settings.cluster_networks.clone(),
        opaque_ports: (1..=u16::MAX).filter(|port| settings.default_opaque_ports.contains(*port)).collect(),
        ..InjectorConfig::default()
    }
}
