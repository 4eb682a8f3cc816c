//! An answer for people: top to bottom as a request lives, in two columns.

use std::{fmt::Write as _, net::IpAddr};

use anstyle::{AnsiColor, Style};
use remora_explain::answer::{
    Answer, Apart, Backend, Client, Course, Endpoint, Lost, Proxy, Reply, Retry, Rule, Served, Timeouts,
    Verdict,
};

/// Columns of what a line is about.
const LABEL: usize = 10;
/// Rules that do not have the request, beyond which they are counted only.
const MAX_LOST: usize = 20;

const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The answer as lines.
pub(super) fn text(answer: &Answer, invalid: &[String]) -> String {
    let mut lines = Lines::default();
    client(&mut lines, &answer.client);
    let asked = &answer.asked;
    let bytes = !answer.courses.is_empty() && answer.courses.iter().all(|course| course.spoken == "bytes");
    let what = match &asked.sni {
        Some(sni) => format!("TLS for {sni}, at "),
        None if bytes => String::new(),
        None => format!("{} {} of {}, at ", asked.method, asked.path, asked.host),
    };
    lines.row("asks", &format!("{what}{}", asked.to));
    for one in &answer.courses {
        lines.blank();
        course(&mut lines, one, &answer.client);
    }
    lines.blank();
    for mistake in invalid {
        lines.row("invalid", mistake);
    }
    for reference in &answer.unresolved {
        lines.row("missing", reference);
    }
    for note in &answer.notes {
        lines.row("note", note);
    }
    let (style, word) = match answer.verdict {
        Verdict::Admitted => (GOOD, "admitted"),
        Verdict::Refused => (BAD, "refused"),
        Verdict::Unresolved => (BAD, "unresolved"),
    };
    lines.row("so it is", &format!("{style}{word}{style:#}"));
    lines.text
}

fn client(lines: &mut Lines, client: &Client) {
    let pods = match (client.pods.as_slice(), client.addresses.as_slice()) {
        ([], []) => String::new(),
        ([], addresses) => format!(", at {}", listed(addresses)),
        (pods, addresses) => format!(", pod {} ({})", pods.join(", "), listed(addresses)),
    };
    lines.row("from", &format!("ServiceAccount {}{pods}", client.account));
    lines.row("as", client.identity.as_deref().unwrap_or("nobody: without a proxy it has no identity"));
}

fn course(lines: &mut Lines, course: &Course, client: &Client) {
    if let Some(told) = course.proxy.as_ref().and_then(|proxy| told(proxy, client)) {
        lines.row("proxy", &told);
    }
    let address = course.address.map(|address| format!(" ({address})")).unwrap_or_default();
    lines.row("to", &format!("{}{address}", course.target));
    let declared = match course.declared {
        "unknown" => String::new(),
        "detect" => ", which is looked for".to_owned(),
        declared => format!(", and the port is declared {}", protocol(declared)),
    };
    lines.row("speaks", &format!("{}{declared}", protocol(course.spoken)));
    rules(lines, course.rule.as_ref(), &course.lost);
    for Apart { of, why } in &course.apart {
        lines.faint("apart", &format!("{of}: {why}"));
    }
    for filter in &course.filters {
        lines.row("filter", filter);
    }
    if let Some(terms) = course.timeouts {
        lines.row("timeouts", &timeouts(terms));
    }
    if let Some(terms) = &course.retry {
        lines.row("retries", &retry(terms));
    }
    if let Some(breaker) = &course.breaker {
        lines.row("left out", &format!("endpoints {breaker}"));
    }
    if let Some(reply) = &course.reply {
        lines.row("answered", &replied(reply));
        return;
    }
    for backend in &course.backends {
        self::backend(lines, backend);
    }
    outcomes(lines, course);
}

/// What the client's proxy was told, where it is not what most are; and of which pods, where others were told otherwise.
fn told(proxy: &Proxy, client: &Client) -> Option<String> {
    let demands = match proxy.outbound_default {
        "all-unauthenticated" => None,
        "cluster-authenticated" => {
            Some("mTLS is demanded inside the cluster (cluster-authenticated)".to_owned())
        }
        other => Some(format!("mTLS is demanded ({other})")),
    };
    let ingress = proxy.ingress.then(|| "in ingress mode".to_owned());
    let told: Vec<String> = ingress.into_iter().chain(demands).collect();
    let pods = (proxy.pods != client.pods).then(|| format!("of pod {}", proxy.pods.join(", ")));
    let all: Vec<String> = pods.into_iter().chain(told).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn rules(lines: &mut Lines, rule: Option<&Rule>, lost: &[Lost]) {
    if let Some(rule) = rule {
        let matches = rule.matches.join(", or ");
        lines.row("rule", &format!("{}{}: {matches}", rule.of, numbered(rule.number)));
    }
    for Lost { of, number, why } in lost.iter().take(MAX_LOST) {
        lines.faint("not", &format!("{of}{}: {why}", numbered(Some(*number))));
    }
    if let Some(more) = lost.len().checked_sub(MAX_LOST).filter(|more| *more > 0) {
        lines.faint("not", &format!("and {more} more rules"));
    }
}

fn numbered(number: Option<usize>) -> String {
    number.map_or_else(String::new, |number| format!(" rule {number}"))
}

fn backend(lines: &mut Lines, backend: &Backend) {
    let shared = backend.weight.filter(|_| backend.percent < 100.0);
    let weight = shared.map(|weight| format!(", weight {weight}")).unwrap_or_default();
    lines.row("goes to", &format!("{} % {}{weight}", Percent(backend.percent), backend.of));
    for filter in &backend.filters {
        lines.row("  filter", filter);
    }
    if let Some(reply) = &backend.reply {
        lines.row("  answer", &replied(reply));
    }
    for endpoint in &backend.endpoints {
        lines.row("", &format!("  {}", dialled(endpoint)));
    }
}

/// Without the zeros that say nothing.
struct Percent(f64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = format!("{:.2}", self.0);
        f.write_str(shown.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn dialled(endpoint: &Endpoint) -> String {
    let pod = endpoint.pod.as_ref().map(|pod| format!(" pod {pod}")).unwrap_or_default();
    let how = match (&endpoint.tls, endpoint.dialled) {
        (Some(identity), "direct") => format!("mTLS with {identity}, by its proxy's port"),
        (Some(identity), _) => format!("mTLS with {identity}"),
        (None, _) => format!("in plain text ({})", endpoint.no_tls.unwrap_or("unknown")),
    };
    let how = match (&endpoint.reply, &endpoint.passed_over) {
        (Some(reply), _) => format!("{BAD}{}{BAD:#}", replied(reply)),
        (None, Some(why)) => format!("{FAINT}passed over: {why}{FAINT:#}"),
        (None, None) => how,
    };
    format!("{}{pod}: {how}", endpoint.address)
}

/// What happens at the endpoints: once for all at which the same does.
fn outcomes(lines: &mut Lines, course: &Course) {
    let mut groups: Vec<(&[Served], Vec<String>)> = Vec::new();
    let used = course.backends.iter().filter(|backend| backend.percent > 0.0);
    let endpoints = used.flat_map(|backend| &backend.endpoints);
    for endpoint in endpoints.filter(|endpoint| !endpoint.served.is_empty()) {
        let at = endpoint.address.to_string();
        match groups.iter_mut().find(|(served, _)| *served == endpoint.served) {
            Some((_, all)) if all.contains(&at) => {}
            Some((_, all)) => all.push(at),
            None => groups.push((&endpoint.served, vec![at])),
        }
    }
    for (outcomes, at) in groups {
        lines.blank();
        for served in outcomes {
            let from =
                if outcomes.len() > 1 { format!(", from {}", listed(&served.from)) } else { String::new() };
            let declared = if served.server.is_some() {
                format!(" ({})", protocol(served.declared))
            } else {
                String::new()
            };
            let server = served.server.as_deref().unwrap_or("no proxy of this mesh");
            lines.row("there", &format!("{server}{declared} at {}{from}", at.join(", ")));
            self::served(lines, served);
        }
    }
}

fn served(lines: &mut Lines, served: &Served) {
    rules(lines, served.rule.as_ref(), &served.lost);
    if let Some(by) = &served.by {
        lines.row("admitted", &format!("{GOOD}by {by}{GOOD:#}"));
    }
    for filter in &served.filters {
        lines.row("filter", filter);
    }
    if let Some(reply) = &served.reply {
        if served.admitted {
            lines.row("answered", &replied(reply));
        } else {
            lines.row("refused", &format!("{BAD}{}{BAD:#}", replied(reply)));
        }
    }
    for Apart { of, why } in &served.refusing {
        lines.faint("not by", &format!("{of}: {why}"));
    }
    for limit in &served.rate_limits {
        lines.row("at most", limit);
    }
    for note in &served.notes {
        lines.row("note", note);
    }
}

fn protocol(word: &str) -> &str {
    match word {
        "http1" => "HTTP/1.1",
        "http2" => "HTTP/2",
        "grpc" => "gRPC",
        "tls" => "TLS of its own",
        "detect" => "unknown",
        other => other,
    }
}

fn replied(reply: &Reply) -> String {
    let status = match (reply.grpc_status, reply.status) {
        (Some(code), _) => format!("gRPC status {code}: "),
        (None, Some(status)) => format!("{status}: "),
        (None, None) => "the connection ends: ".to_owned(),
    };
    format!("{status}{}", reply.why)
}

fn timeouts(terms: Timeouts) -> String {
    let all = [("request", terms.request), ("response", terms.response), ("idle", terms.idle)];
    let stated = all.iter().filter_map(|(name, time)| Some(format!("{name} {} s", (*time)?)));
    stated.collect::<Vec<_>>().join(", ")
}

fn retry(terms: &Retry) -> String {
    let mut text = terms.limit.map_or_else(String::new, |limit| match terms.asked {
        Some(asked) => format!("up to {limit} (not {asked}: REMORA_PROXY_MAX_RETRIES), "),
        None => format!("up to {limit}, "),
    });
    let on = if terms.on.is_empty() {
        "without an answer".to_owned()
    } else {
        format!("after {}", terms.on.join(", "))
    };
    text.push_str(&on);
    let more = [
        terms.timeout.map(|time| format!("each try {time} s")),
        terms.backoff.as_ref().map(|pause| format!("pauses {pause}")),
        terms.budget.as_ref().map(|budget| format!("within {budget}")),
    ];
    for part in more.into_iter().flatten() {
        let _infallible = write!(text, ", {part}");
    }
    text
}

fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Lines in two columns; a label that is that of the line before is not said again.
#[derive(Default)]
struct Lines {
    text: String,
    last: String,
}

impl Lines {
    fn row(&mut self, label: &str, what: &str) {
        let shown = if self.last == label { "" } else { label };
        let _infallible = writeln!(self.text, "{shown:<LABEL$}{what}");
        label.clone_into(&mut self.last);
    }

    fn faint(&mut self, label: &str, what: &str) {
        self.row(label, &format!("{FAINT}{what}{FAINT:#}"));
    }

    fn blank(&mut self) {
        if !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
        self.last.clear();
    }
}
