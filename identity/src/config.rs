//! Flags → [`Config`]: the only list of the settings of `remora-identity`. All mistakes are reported at once, by flag,
//! and the process exits with 64.

use crate::{
    issue::{Lifetimes, MAX_LIFETIME},
    issuer::Sources,
    serve::Names,
    token::JwtValidator,
};
use remora_core::identity::Identity;
use remora_runtime::{
    env::parse::{self, Invalid},
    log::{self, Format},
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The certificate authority of the mesh: service account token in, certificate out.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "remora-identity", version)]
pub struct Args {
    /// Where Certify is served.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "IP:PORT")]
    pub grpc_addr: String,
    /// Where /live, /ready and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:9990", value_name = "IP:PORT")]
    pub admin_addr: String,
    /// Folder with crt.pem and key.pem, or tls.crt and tls.key; followed as it changes.
    #[arg(long, value_name = "DIR")]
    pub issuer_dir: Option<PathBuf>,
    /// PEM file of the trust anchors that the issuer leads to; followed as it changes.
    #[arg(long, value_name = "FILE")]
    pub trust_anchors: Option<PathBuf>,
    /// Last part of every identity.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub trust_domain: String,
    /// Namespace of this control plane, part of every identity.
    #[arg(long, default_value = "remora", value_name = "NAMESPACE")]
    pub control_namespace: String,
    /// How long certificates hold: an integer followed by ms, s, m, h or d.
    #[arg(long, default_value = "24h", value_name = "DURATION")]
    pub issuance_lifetime: String,
    /// How much earlier they begin and later they end, for clocks that disagree.
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    pub clock_skew_allowance: String,
    /// PEM file of the public keys that service account tokens are signed with.
    #[arg(long, value_name = "FILE")]
    pub token_public_key: Option<PathBuf>,
    /// Issuer that tokens must name.
    #[arg(long, value_name = "ISSUER")]
    pub token_issuer: Option<String>,
    /// Audience that tokens must be for.
    #[arg(long, default_value = "identity.l5d.io", value_name = "AUDIENCE")]
    pub token_audience: String,
    /// Serve without TLS: only on a loopback address.
    #[arg(long)]
    pub plaintext: bool,
    /// Log filter, such as info or warn,remora_identity=debug.
    #[arg(long, default_value = "info", value_name = "FILTER")]
    pub log_level: String,
    /// plain or json.
    #[arg(long, default_value = "plain", value_name = "FORMAT")]
    pub log_format: String,
}

/// Everything that the process is told at start.
pub struct Config {
    /// Where Certify is served.
    pub grpc_addr: SocketAddr,
    /// Where the admin port is.
    pub admin_addr: SocketAddr,
    /// The issuer's files.
    pub sources: Sources,
    /// How identities are called.
    pub names: Names,
    /// Who we are.
    pub own: Identity,
    /// How long certificates hold.
    pub lifetimes: Lifetimes,
    /// Who says whom a token belongs to.
    pub validator: JwtValidator,
    /// Without TLS.
    pub plaintext: bool,
    /// What is logged.
    pub log_level: String,
    /// How.
    pub log_format: Format,
}

impl Args {
    /// Checks all flags, and reads the public keys; the error lists every mistake.
    pub fn check(self) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let names = Names {
            control_namespace: self.control_namespace.trim().to_owned(),
            trust_domain: self.trust_domain.trim_end_matches('.').to_owned(),
        };
        let own = names.own().map_err(|fault| {
            mistakes.push(format!("--trust-domain and --control-namespace make no identity: {fault}"));
        });
        let grpc_addr = read("--grpc-addr", &self.grpc_addr, parse::socket_addr, &mut mistakes);
        let admin_addr = read("--admin-addr", &self.admin_addr, parse::socket_addr, &mut mistakes);
        if self.plaintext && grpc_addr.is_some_and(|addr| !addr.ip().is_loopback()) {
            mistakes.push(
                "--plaintext: only with a loopback --grpc-addr, because tokens would be readable".to_owned(),
            );
        }
        let issuance = read("--issuance-lifetime", &self.issuance_lifetime, lifetime, &mut mistakes);
        let skew = read("--clock-skew-allowance", &self.clock_skew_allowance, parse::duration, &mut mistakes);
        let log_level = read("--log-level", &self.log_level, log::check, &mut mistakes);
        let formats = parse::one_of(&[("plain", Format::Plain), ("json", Format::Json)]);
        let log_format = read("--log-format", &self.log_format, formats, &mut mistakes);
        let issuer_dir = required("--issuer-dir", self.issuer_dir, &mut mistakes);
        let trust_anchors = required("--trust-anchors", self.trust_anchors, &mut mistakes);
        let key_file = required("--token-public-key", self.token_public_key, &mut mistakes);
        let issuer =
            required("--token-issuer", self.token_issuer.filter(|issuer| !issuer.is_empty()), &mut mistakes);
        if self.token_audience.is_empty() {
            mistakes.push("--token-audience: is empty; tokens for anybody would be accepted".to_owned());
        }
        let validator = key_file.and_then(|path| {
            // With a wrong issuer the keys are still looked at, so that all mistakes are told at once.
            let issuer = issuer.clone().unwrap_or_default();
            let keys = std::fs::read_to_string(&path).map_err(|fault| fault.to_string());
            let keys = keys.and_then(|pem| {
                JwtValidator::from_pem(&pem, &issuer, &self.token_audience).map_err(|fault| fault.to_string())
            });
            keys.map_err(|why| mistakes.push(format!("--token-public-key: {}: {why}", path.display()))).ok()
        });
        let config = (|| {
            issuer?;
            Some(Config {
                grpc_addr: grpc_addr?,
                admin_addr: admin_addr?,
                sources: Sources { issuer_dir: issuer_dir?, trust_anchors: trust_anchors? },
                names,
                own: own.ok()?,
                lifetimes: Lifetimes { issuance: issuance?, skew: skew? },
                validator: validator?,
                plaintext: self.plaintext,
                log_level: log_level?,
                log_format: log_format?,
            })
        })();
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }
}

fn read<T, E: Into<Invalid>>(
    flag: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    mistakes: &mut Vec<String>,
) -> Option<T> {
    match parse(text) {
        Ok(value) => Some(value),
        Err(invalid) => {
            let Invalid { wrong, expected } = invalid.into();
            mistakes.push(format!("{flag}={text:?}: {wrong}; expected {expected}"));
            None
        }
    }
}

fn required<T>(flag: &str, value: Option<T>, mistakes: &mut Vec<String>) -> Option<T> {
    if value.is_none() {
        mistakes.push(format!("{flag}: is required"));
    }
    value
}

/// Shorter than half a minute and clients would do nothing but renew.
fn lifetime(text: &str) -> Result<Duration, Invalid> {
    let lifetime = parse::duration(text)?;
    if lifetime < Duration::from_secs(30) || lifetime > MAX_LIFETIME {
        return Err(Invalid::new("is out of bounds", "30s to 365d"));
    }
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use rcgen::KeyPair;

    #[test]
    fn what_must_be_given_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let key = key_file(&dir);
        let config = check(&[
            "--issuer-dir",
            "/i",
            "--trust-anchors",
            "/a",
            "--token-public-key",
            &key,
            "--token-issuer",
            "https://k",
        ]);
        let config = config.map_err(|mistakes| mistakes.join("\n")).unwrap();
        assert_eq!(config.grpc_addr.to_string(), "0.0.0.0:8080");
        assert_eq!(
            config.own.as_str(),
            "remora-identity.remora.serviceaccount.identity.remora.cluster.local"
        );
        assert_eq!(config.lifetimes.issuance, Duration::from_hours(24));
        assert_eq!(config.lifetimes.skew, Duration::from_mins(1));
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes = check(&[
            "--grpc-addr",
            "nowhere",
            "--admin-addr",
            "1.2.3.4",
            "--issuance-lifetime",
            "5s",
            "--clock-skew-allowance",
            "60",
            "--trust-domain",
            "a b",
            "--log-level",
            "=,=",
            "--log-format",
            "xml",
            "--token-public-key",
            "/absent/key.pem",
            "--token-audience",
            "",
        ])
        .map(|_| ())
        .unwrap_err()
        .join("\n");
        for flag in [
            "--grpc-addr=\"nowhere\"",
            "--admin-addr=\"1.2.3.4\"",
            "--issuance-lifetime=\"5s\"",
            "--clock-skew-allowance=\"60\"",
            "--trust-domain",
            "--log-level=",
            "--log-format=\"xml\"",
            "--token-public-key: /absent/key.pem",
            "--token-audience",
            "--issuer-dir: is required",
            "--trust-anchors: is required",
            "--token-issuer: is required",
        ] {
            assert!(mistakes.contains(flag), "{flag} not in:\n{mistakes}");
        }
    }

    #[test]
    fn plaintext_is_for_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let key = key_file(&dir);
        let with = |addr| {
            check(&[
                "--plaintext",
                "--grpc-addr",
                addr,
                "--issuer-dir",
                "/i",
                "--trust-anchors",
                "/a",
                "--token-public-key",
                &key,
                "--token-issuer",
                "https://k",
            ])
        };
        assert!(with("127.0.0.1:0").is_ok());
        assert!(with("[::1]:0").is_ok());
        let mistakes = with("0.0.0.0:8080").map(|_| ()).unwrap_err();
        assert!(mistakes[0].contains("--plaintext: only with a loopback"), "{mistakes:?}");
    }

    fn check(flags: &[&str]) -> Result<Config, Vec<String>> {
        Args::parse_from(std::iter::once(&"remora-identity").chain(flags)).check()
    }

    fn key_file(dir: &tempfile::TempDir) -> String {
        let path = dir.path().join("key.pem");
        std::fs::write(&path, KeyPair::generate().unwrap().public_key_pem()).unwrap();
        path.to_str().unwrap().to_owned()
    }
}
