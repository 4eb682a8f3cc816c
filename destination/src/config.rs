//! What the process is told on its command line: the only list of its flags. All mistakes are reported at once.

use crate::{
    ports::PortSet,
    serve::Limits,
    view::{Settings, TransportMode},
};
use clap::{Arg, ArgAction, Command};
use ipnet::IpNet;
use remora_core::{identity::Identity, policy::DefaultPolicy};
use remora_runtime::{
    env::{Env, HostPort, Invalid, Mistakes, parse},
    log,
};
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

/// The configuration of the process.
#[derive(Debug)]
pub struct Config {
    /// The directory of manifests.
    pub manifests: PathBuf,
    /// Where Destination is served.
    pub grpc_addr: SocketAddr,
    /// Where the policy APIs are served.
    pub policy_addr: SocketAddr,
    /// Where the admin port is served.
    pub admin_addr: SocketAddr,
    /// What answers depend on.
    pub settings: Settings,
    /// How many at once.
    pub limits: Limits,
    /// How to get a certificate; `None` is plaintext on loopback.
    pub mesh: Option<MeshConfig>,
    /// Which lines are logged.
    pub log_level: String,
    /// In which shape.
    pub log_format: log::Format,
    /// How long streams may take to end after SIGTERM.
    pub grace: Duration,
    /// The flags as they were given, for `/env.json`.
    pub shown: Vec<(String, String)>,
}

/// How this process gets its certificate.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// Where identity answers.
    pub identity_addr: HostPort,
    /// Who must answer there.
    pub identity_name: Identity,
    /// Who we are.
    pub local_name: Identity,
    /// PEM file of the trust anchors.
    pub trust_anchors: PathBuf,
    /// The service-account token for identity.
    pub token_file: PathBuf,
    /// Memory-backed folder for key, leaf and bundle.
    pub identity_dir: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum NoConfig {
    /// `--help`, `--version`, or a flag that does not exist: clap's text says which.
    Usage(clap::Error),
    /// Values that are wrong, all of them.
    Wrong(Mistakes),
}

const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";
pub(crate) const OPAQUE_PORTS: &str = "25,587,3306,4444,5432,6379,9300,11211";

/// Flags with a value: name, default (empty is none), help.
const FLAGS: [(&str, &str, &str); 26] = [
    ("manifests", "", "Directory of Kubernetes manifests to read and follow (required)"),
    ("grpc-addr", "0.0.0.0:8086", "Address on which Destination is served"),
    ("policy-addr", "0.0.0.0:8090", "Address on which the policy APIs are served"),
    ("admin-addr", "0.0.0.0:9996", "Address of /live, /ready, /metrics and /state.json"),
    ("cluster-domain", "cluster.local", "Domain of the cluster's DNS"),
    ("trust-domain", "cluster.local", "Last part of workload identities"),
    ("control-namespace", "remora", "Namespace of this control plane"),
    ("cluster-networks", CLUSTER_NETWORKS, "Networks of pods and Services; what is outside is forwarded"),
    ("probe-networks", "0.0.0.0/0,::/0", "Networks from which probes need no authorization"),
    ("default-inbound-policy", "all-unauthenticated", "Policy of ports that nothing else speaks of"),
    ("default-opaque-ports", OPAQUE_PORTS, "Opaque ports of whatever has no annotation"),
    (
        "outbound-transport-mode",
        "transport-header",
        "How meshed pods are reached: transport-header or transparent",
    ),
    ("enable-h2-upgrade", "true", "May Linkerd's proxies carry HTTP/1 over HTTP/2 to meshed pods?"),
    (
        "allow-l5d-request-headers",
        "false",
        "May l5d-* request headers choose timeouts and retries where a route holds?",
    ),
    ("identity-addr", "", "host:port of the identity service"),
    ("identity-name", "", "Identity that must answer there"),
    ("local-name", "", "Identity of this process"),
    ("trust-anchors", "", "PEM file of the trust anchors"),
    ("token-file", "", "Service-account token for the identity service"),
    ("identity-dir", "", "Memory-backed folder for key and certificate"),
    (
        "max-connections",
        "10000",
        "Connections per port; more wait, and one address may have a quarter of them",
    ),
    ("max-streams", "100000", "Streams of the process; more are refused"),
    ("max-streams-per-connection", "4096", "Streams on one connection; more wait"),
    ("shutdown-grace-period", "30s", "How long streams may take to end after SIGTERM"),
    ("log-level", "info", "Log filter, such as info or warn,remora_destination=debug"),
    ("log-format", "plain", "plain or json"),
];

impl Config {
    /// Reads the arguments, the program's name first.
    pub fn read(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, NoConfig> {
        let matches = command().try_get_matches_from(arguments).map_err(NoConfig::Usage)?;
        let value = |name: &str| matches.get_one::<OsString>(name).cloned();
        let given = FLAGS.iter().filter_map(|(name, ..)| Some((format!("--{name}"), value(name)?)));
        let mut flags = Env::from_pairs(given);
        let config = read(&mut flags, matches.get_flag("plaintext"));
        match (config, flags.finish()) {
            (Some(config), Ok(())) => Ok(config),
            (_, Err(mistakes)) => Err(NoConfig::Wrong(mistakes)),
            // Every reader that gives nothing has complained.
            (None, Ok(())) => Err(NoConfig::Wrong(Mistakes::default())),
        }
    }
}

fn command() -> Command {
    let flags = FLAGS.iter().map(|(name, default, help)| {
        let help =
            if default.is_empty() { (*help).to_owned() } else { format!("{help} [default: {default}]") };
        Arg::new(*name)
            .long(*name)
            .help(help)
            .value_name("VALUE")
            .value_parser(clap::value_parser!(OsString))
            .action(ArgAction::Set)
            .overrides_with(*name)
            .allow_hyphen_values(true)
    });
    let plaintext = Arg::new("plaintext")
        .long("plaintext")
        .help("Serve without TLS and believe every client; only with loopback addresses")
        .action(ArgAction::SetTrue);
    Command::new("remora-destination")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves discovery and policy to the proxies of a mesh")
        .args(flags)
        .arg(plaintext)
}

fn read(flags: &mut Env, plaintext: bool) -> Option<Config> {
    let addr = |flags: &mut Env, name: &str| with_default(flags, name, parse::socket_addr);
    let grpc_addr = addr(flags, "--grpc-addr");
    let policy_addr = addr(flags, "--policy-addr");
    let admin_addr = addr(flags, "--admin-addr");
    if plaintext {
        for (name, addr) in [("--grpc-addr", grpc_addr), ("--policy-addr", policy_addr)] {
            if addr.is_some_and(|addr| !addr.ip().to_canonical().is_loopback()) {
                flags.complain(
                    name,
                    "is not a loopback address",
                    "one such as 127.0.0.1:8086, because of --plaintext",
                );
            }
        }
    }
    let settings = settings(flags);
    let limits = limits(flags);
    let mesh = if plaintext { None } else { Some(mesh(flags)) };
    let log_level = with_default(flags, "--log-level", |text| {
        log::check(text).map_err(|error| Invalid::new(error.to_string(), "a filter such as info"))?;
        Ok(text.to_owned())
    });
    let log_format = with_default(flags, "--log-format", str::parse);
    let grace = with_default(flags, "--shutdown-grace-period", parse::duration);
    let manifests = flags.required("--manifests", "a directory of Kubernetes manifests", parse::path);
    Some(Config {
        manifests: manifests?,
        grpc_addr: grpc_addr?,
        policy_addr: policy_addr?,
        admin_addr: admin_addr?,
        settings: settings?,
        limits: limits?,
        mesh: match mesh {
            Some(mesh) => Some(mesh?),
            None => None,
        },
        log_level: log_level?,
        log_format: log_format?,
        grace: grace?,
        shown: flags.shown(),
    })
}

fn settings(flags: &mut Env) -> Option<Settings> {
    let policies = [
        DefaultPolicy::AllUnauthenticated,
        DefaultPolicy::AllAuthenticated,
        DefaultPolicy::ClusterUnauthenticated,
        DefaultPolicy::ClusterAuthenticated,
        DefaultPolicy::Audit,
        DefaultPolicy::Deny,
    ];
    let policies = policies.map(|policy| (policy.as_str(), policy));
    let modes =
        [("transport-header", TransportMode::TransportHeader), ("transparent", TransportMode::Transparent)];
    let cluster_domain = with_default(flags, "--cluster-domain", domain);
    let trust_domain = with_default(flags, "--trust-domain", domain);
    let control_namespace = with_default(flags, "--control-namespace", domain);
    let cluster_networks = with_default(flags, "--cluster-networks", networks);
    let probe_networks = with_default(flags, "--probe-networks", networks);
    let default_inbound_policy = with_default(flags, "--default-inbound-policy", parse::one_of(&policies));
    let default_opaque_ports = with_default(flags, "--default-opaque-ports", ports);
    let transport_mode = with_default(flags, "--outbound-transport-mode", parse::one_of(&modes));
    let h2_upgrade = with_default(flags, "--enable-h2-upgrade", parse::boolean);
    let heed_request_headers = with_default(flags, "--allow-l5d-request-headers", parse::boolean);
    Some(Settings {
        cluster_domain: cluster_domain?,
        trust_domain: trust_domain?,
        control_namespace: control_namespace?,
        cluster_networks: cluster_networks?,
        probe_networks: probe_networks?,
        default_inbound_policy: default_inbound_policy?,
        default_opaque_ports: default_opaque_ports?,
        transport_mode: transport_mode?,
        h2_upgrade: h2_upgrade?,
        heed_request_headers: heed_request_headers?,
    })
}

fn limits(flags: &mut Env) -> Option<Limits> {
    let connections = with_default(flags, "--max-connections", parse::number_within(1, 1_000_000));
    let streams = with_default(flags, "--max-streams", parse::number_within(1, 10_000_000));
    let per_connection =
        with_default(flags, "--max-streams-per-connection", parse::number_within(1, 1_000_000));
    Some(Limits {
        connections: connections?,
        streams: streams?,
        streams_per_connection: per_connection?,
        ..Limits::default()
    })
}

fn mesh(flags: &mut Env) -> Option<MeshConfig> {
    let why = "needed to get a certificate (or, on loopback, --plaintext)";
    let identity_addr = flags.required("--identity-addr", why, parse::host_port);
    let identity_name = flags.required("--identity-name", why, parse::identity);
    let local_name = flags.required("--local-name", why, parse::identity);
    let trust_anchors = flags.required("--trust-anchors", why, parse::path);
    let token_file = flags.required("--token-file", why, parse::path);
    let identity_dir = flags.optional("--identity-dir", parse::path);
    Some(MeshConfig {
        identity_addr: identity_addr?,
        identity_name: identity_name?,
        local_name: local_name?,
        trust_anchors: trust_anchors?,
        token_file: token_file?,
        identity_dir,
    })
}

/// A flag's value, or its default out of the list above. `None` always comes with a mistake.
fn with_default<T>(flags: &mut Env, name: &str, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> Option<T> {
    if flags.is_set(name) {
        return flags.optional(name, parse);
    }
    let default =
        FLAGS.iter().find(|(flag, ..)| name.strip_prefix("--") == Some(flag)).map(|(_, default, _)| *default);
    match parse(default.unwrap_or_default()) {
        Ok(value) => Some(value),
        Err(invalid) => {
            flags.complain(name, invalid.wrong, invalid.expected);
            None
        }
    }
}

fn domain(text: &str) -> Result<String, Invalid> {
    let text = text.trim().trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    if text.split('.').all(label) {
        Ok(text)
    } else {
        Err(Invalid::new("is no DNS name", "a name such as cluster.local"))
    }
}

fn networks(text: &str) -> Result<Vec<IpNet>, Invalid> {
    let networks = parse::networks(text)?;
    if networks.is_empty() {
        // An authorization without networks is invalid on the wire (contract 3.4).
        return Err(Invalid::new("lists no network", "networks such as 10.0.0.0/8,fd00::/8"));
    }
    Ok(networks)
}

fn ports(text: &str) -> Result<PortSet, Invalid> {
    let (ports, invalid) = PortSet::parse(text, |_| None);
    match invalid.first() {
        None => Ok(ports),
        Some(invalid) => Err(Invalid::new(invalid.to_string(), "ports and ranges such as 25,587,8000-8010")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_list_are_all_valid() {
        let config = Config::read([
            "x",
            "--manifests",
            "/m",
            "--plaintext",
            "--grpc-addr",
            "127.0.0.1:0",
            "--policy-addr",
            "[::1]:0",
        ]);
        let config = config.unwrap();
        assert_eq!(config.settings.cluster_networks.len(), 5);
        assert_eq!(config.settings.default_opaque_ports.to_string(), OPAQUE_PORTS);
        assert_eq!(config.settings.default_inbound_policy, DefaultPolicy::AllUnauthenticated);
        assert_eq!((config.grace, config.limits.streams_per_connection), (Duration::from_secs(30), 4096));
        assert!(config.mesh.is_none() && config.settings.h2_upgrade);
    }

    #[test]
    fn the_last_of_a_flag_given_twice_counts() {
        let config = Config::read([
            "x",
            "--manifests=/a",
            "--manifests=/b",
            "--plaintext",
            "--grpc-addr=127.0.0.1:0",
            "--policy-addr=127.0.0.1:0",
        ]);
        assert_eq!(config.unwrap().manifests, PathBuf::from("/b"));
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let arguments = [
            "x",
            "--grpc-addr=here",
            "--default-inbound-policy=maybe",
            "--default-opaque-ports=25,0",
            "--shutdown-grace-period=10",
            "--cluster-networks=,",
            "--token-file=",
        ];
        wrong(
            &arguments,
            &[
                "--grpc-addr",
                "--cluster-networks",
                "--default-inbound-policy",
                "--default-opaque-ports",
                "--identity-addr",
                "--identity-name",
                "--local-name",
                "--trust-anchors",
                "--token-file",
                "--shutdown-grace-period",
                "--manifests",
            ],
        );
    }

    #[test]
    fn plaintext_is_for_loopback_only() {
        wrong(&["x", "--manifests=/m", "--plaintext"], &["--grpc-addr", "--policy-addr"]);
        wrong(
            &["x", "--manifests=/m", "--plaintext", "--grpc-addr=127.0.0.1:1", "--policy-addr=10.0.0.1:1"],
            &["--policy-addr"],
        );
    }

    #[test]
    fn an_unknown_flag_is_named() {
        let error = Config::read(["x", "--manifest=/m"]);
        assert!(
            matches!(&error, Err(NoConfig::Usage(usage)) if usage.to_string().contains("--manifest")),
            "{error:?}"
        );
    }

    #[track_caller]
    fn wrong(arguments: &[&str], expected: &[&str]) {
        match Config::read(arguments.iter().copied()) {
            Err(NoConfig::Wrong(Mistakes(mistakes))) => {
                let names: Vec<_> = mistakes.iter().map(|mistake| mistake.name.as_str()).collect();
                assert_eq!(names, expected);
            }
            other => panic!("{other:?}"),
        }
    }
}
