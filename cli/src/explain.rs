//! `remora explain`: what becomes of a request, from manifests alone.

mod text;

use std::{net::IpAddr, process::ExitCode};

use clap::{Args, ValueEnum};
use remora_destination::{
    check::{Loaded, load},
    resources::Name,
};
use remora_explain::{
    answer::{Answer, Verdict},
    explain,
    question::{OutboundDefault, Question, Speaks},
};
use serde::Serialize;

use crate::{
    Format, USAGE, complain,
    manifests::{Manifests, Read},
    print, print_styled,
};

/// Somebody refuses it, or fails it.
const REFUSED: u8 = 3;
/// A manifest is invalid, or something that decides refers to what is not there.
const UNRESOLVED: u8 = 2;

/// Say what becomes of a request: who has it, what is done with it, where it goes, and who admits or refuses it there.
///
/// From manifests alone, with the code of remora-destination and remora-proxy: what this says is what they do. Reads every
/// *.yaml, *.yml and *.json of the directory as `remora check` does: what `kubectl get -o yaml` prints, or manifests that
/// were never in a cluster. Of those each workload is taken to have one pod, with the proxy that the webhook would give it,
/// and an address.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        remora explain --manifests live/ --from shop/till --to web:80 --path /cart -H 'x-canary: always'\n  \
        remora explain --manifests live/ --from shop/till --to db.data:5432\n  \
        remora explain --manifests live/ --from edge/probe --to web.shop:80 --unmeshed --from-ip 192.0.2.7 -o json\n\n\
        Exit codes: 0 admitted, or redirected by a route; 3 refused, or failed, by whomever may be picked; 2 a manifest is \
        invalid, or something that decides here refers to what is not there; 1 the directory cannot be read; 64 the command \
        line is wrong.")]
pub(crate) struct Explain {
    #[command(flatten)]
    manifests: Manifests,
    /// The client: namespace and ServiceAccount.
    #[arg(long, value_name = "NS/SA", value_parser = account)]
    from: Name,
    /// The client's address, where policy asks for it and no pod here has the account.
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// The client has no proxy.
    #[arg(long)]
    unmeshed: bool,
    /// What it asks: SVC:PORT, SVC.NS:PORT, the whole name of a Service, or IP:PORT.
    #[arg(long, value_name = "SVC:PORT")]
    to: String,
    /// Method of the request: else GET, for gRPC POST.
    #[arg(long)]
    method: Option<String>,
    /// Its path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// A header of it, as often as there are some; `host` is what --to says unless it is here.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = field)]
    headers: Vec<(String, String)>,
    /// It is TLS of the application's own, with this server name.
    #[arg(long, value_name = "SNI", conflicts_with = "speaks")]
    tls: Option<String>,
    /// What the client speaks: else what the port is declared to be, or HTTP/1.1.
    #[arg(long, value_enum)]
    speaks: Option<Protocol>,
    /// Last part of workload identities.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = "remora")]
    control_namespace: String,
    /// Networks of pods and Services, instead of remora-destination's default.
    #[arg(long, value_name = "NETWORKS")]
    cluster_networks: Option<String>,
    /// Policy of ports that nothing else speaks of, instead of remora-destination's default.
    #[arg(long, value_name = "POLICY")]
    default_inbound_policy: Option<String>,
    /// Whom the client's proxy may reach in plaintext, where it has no pod here and its namespace does not say: the
    /// injector's `defaultOutboundPolicy`.
    #[arg(long, value_name = "POLICY", default_value = "all-unauthenticated", value_parser = outbound_default)]
    default_outbound_policy: OutboundDefault,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Http1,
    Http2,
    Grpc,
    Bytes,
}

/// What is printed as JSON: the answer, and which documents were not read.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    /// Mistakes of manifests, and what in them nobody enforces.
    invalid: &'a [String],
}

pub(crate) fn run(args: &Explain) -> ExitCode {
    let Read { reading, config, supposed } = match args.manifests.read("remora explain", &flags(args)) {
        Ok(read) => read,
        Err(code) => return code,
    };
    let Loaded { index, files, .. } = load(&reading);
    let invalid: Vec<String> = files
        .iter()
        .flat_map(|(file, report)| report.wrong().map(move |error| format!("{file}: {error}")))
        .collect();
    let mut answer = match explain(&index, &config.settings, &question(args)) {
        Ok(answer) => answer,
        Err(why) => {
            complain(&format!("remora explain: {why}"));
            return ExitCode::from(USAGE);
        }
    };
    answer.notes.extend(supposed);
    let printed = match args.output {
        Format::Text => print_styled(&text::text(&answer, &invalid)),
        Format::Json => match serde_json::to_string_pretty(&Printed { answer: &answer, invalid: &invalid }) {
            Ok(text) => print(&format!("{text}\n")),
            Err(why) => {
                complain(&format!("remora explain: {why}"));
                return ExitCode::FAILURE;
            }
        },
    };
    let code = match answer.verdict {
        _ if !invalid.is_empty() => ExitCode::from(UNRESOLVED),
        Verdict::Unresolved => ExitCode::from(UNRESOLVED),
        Verdict::Refused => ExitCode::from(REFUSED),
        Verdict::Admitted => ExitCode::SUCCESS,
    };
    if printed == ExitCode::SUCCESS { code } else { printed }
}

fn flags(args: &Explain) -> Vec<String> {
    let mut flags = vec![
        format!("--trust-domain={}", args.trust_domain),
        format!("--control-namespace={}", args.control_namespace),
    ];
    flags.extend(args.cluster_networks.iter().map(|networks| format!("--cluster-networks={networks}")));
    flags.extend(
        args.default_inbound_policy.iter().map(|policy| format!("--default-inbound-policy={policy}")),
    );
    flags
}

fn question(args: &Explain) -> Question {
    let speaks = match (&args.tls, args.speaks) {
        (Some(sni), _) => Speaks::Tls(sni.clone()),
        (None, None) => Speaks::Declared,
        (None, Some(Protocol::Http1)) => Speaks::Http1,
        (None, Some(Protocol::Http2)) => Speaks::Http2,
        (None, Some(Protocol::Grpc)) => Speaks::Grpc,
        (None, Some(Protocol::Bytes)) => Speaks::Bytes,
    };
    Question {
        unmeshed: args.unmeshed,
        default_outbound_policy: args.default_outbound_policy,
        from_ip: args.from_ip,
        speaks,
        method: args.method.clone(),
        path: args.path.clone(),
        headers: args.headers.clone(),
        ..Question::new(args.from.clone(), &args.to)
    }
}

/// `<namespace>/<name>`.
fn account(text: &str) -> Result<Name, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Name::new(namespace, name))
        }
        _ => Err("not of the form <namespace>/<ServiceAccount>".to_owned()),
    }
}

fn outbound_default(text: &str) -> Result<OutboundDefault, String> {
    let names = || OutboundDefault::ALL.map(OutboundDefault::as_str).join(", ");
    OutboundDefault::parse(text).ok_or_else(|| format!("not one of {}", names()))
}

/// `<name>: <value>`.
fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("not of the form <name>: <value>")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
