//! Pure. Every annotation that this process reads: on what, which values, what holds without it. The pages of `docs/` that
//! are about them have their tables printed from here. A name with one of [`PREFIXES`] that is not here is reported.
//!
//! A new annotation is a row here, and its reading in [`crate::index`].

use crate::{
    config::OPAQUE_PORTS,
    index::defaults::{
        HONOR_RETRY_AFTER, JITTER, MAX_FAILURES, MAX_PENALTY, MIN_PENALTY, MIN_REQUESTS, RETRIES, THRESHOLD,
        WINDOW, strategy_word,
    },
};
use remora_core::balance::Strategy;
use std::{
    fmt::{self, Write as _},
    time::Duration,
};

/// Prefixes of which every annotation is here.
pub const PREFIXES: [&str; 3] = ["timeout.linkerd.io/", "retry.linkerd.io/", "balancer.linkerd.io/"];

/// One annotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Annotation {
    /// The page whose table it is in.
    pub page: Page,
    /// Its name.
    pub name: &'static str,
    /// What may carry it, the first of which says something holding.
    pub on: &'static str,
    /// What may be written, in words.
    pub value: &'static str,
    /// What holds without it.
    pub default: Unset,
    /// What it does, in a line.
    pub help: &'static str,
    /// A value that says something.
    pub example: &'static str,
    /// A value that is a mistake.
    pub wrong: &'static str,
}

/// What holds without an annotation: the value that is used, where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unset {
    /// In words.
    Words(&'static str),
    /// A number, and where it holds if not everywhere.
    Number(u32, &'static str),
    /// A ratio.
    Ratio(f32),
    /// A share.
    Share(f64),
    /// A time.
    Time(Duration),
    /// Yes or no.
    Flag(bool),
    /// A strategy.
    Strategy(Strategy),
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => f.write_str(words),
            Self::Number(number, further) => write!(f, "{number}{further}"),
            Self::Ratio(ratio) => write!(f, "{ratio}"),
            Self::Share(share) => write!(f, "{share}"),
            Self::Time(time) if time.as_secs() % 60 == 0 => write!(f, "{}m", time.as_secs() / 60),
            Self::Time(time) => write!(f, "{}s", time.as_secs()),
            Self::Flag(flag) => write!(f, "`{flag}`"),
            Self::Strategy(strategy) => write!(f, "`{}`", strategy_word(*strategy)),
        }
    }
}

/// The pages that have tables of annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `docs/routes.md`
    Routes,
    /// `docs/balancing.md`
    Balancing,
    /// `docs/policy.md`
    Policy,
    /// `docs/plaintext.md`
    Plaintext,
    /// `docs/profiles.md`
    Profiles,
}

impl Page {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Routes, Self::Balancing, Self::Policy, Self::Plaintext, Self::Profiles];

    /// The name of its file in `docs/`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Routes => "routes.md",
            Self::Balancing => "balancing.md",
            Self::Policy => "policy.md",
            Self::Plaintext => "plaintext.md",
            Self::Profiles => "profiles.md",
        }
    }
}

macro_rules! rows {
    ($($page:ident | $name:literal | $on:literal | $value:literal | [$default:expr] | $example:literal / $wrong:literal | $help:literal)*) => {
        &[$(Annotation {
            page: Page::$page, name: $name, on: $on, value: $value, default: $default,
            example: $example, wrong: $wrong, help: $help,
        }),*]
    };
}

const NONE: Unset = Unset::Words("none");

/// Every annotation, by page.
#[rustfmt::skip]
pub const ANNOTATIONS: &[Annotation] = rows! {
    Routes | "timeout.linkerd.io/request" | "route, Service" | "time" | [NONE] | "10s" / "soon"
        | "From a request's arrival to its response's end, retries included"
    Routes | "timeout.linkerd.io/response" | "route, Service" | "time" | [NONE] | "10s" / "soon"
        | "From a request's end to its response's end"
    Routes | "timeout.linkerd.io/idle" | "route, Service" | "time" | [NONE] | "10s" / "soon"
        | "Without a frame in either direction"
    Routes | "retry.linkerd.io/http" | "route, Service" | "list of `5xx`, `gateway-error` (502 to 504), `429`, `500-502`" | [NONE] | "5xx" / "6xx"
        | "Answers after which a request is sent again"
    Routes | "retry.linkerd.io/grpc" | "route, Service"
        | "list of `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`" | [NONE] | "unavailable" / "broken"
        | "The same of gRPC"
    Routes | "retry.linkerd.io/limit" | "route, Service" | "0 to 65535" | [Unset::Number(RETRIES, " where retries are asked for")] | "2" / "-1"
        | "How often a request is sent again, [10 times at most](#retries). 0 is never"
    Routes | "retry.linkerd.io/timeout" | "route, Service" | "time" | [NONE] | "1s" / "soon"
        | "How long a try may take to the head of its response, but for the last one"
    Balancing | "balancer.remora.io/strategy" | "Service" | "`ewma`, `least-request`, `round-robin`" | [Unset::Strategy(Strategy::PeakEwma)] | "round-robin" / "random"
        | "[Who is asked](#who-is-asked)"
    Balancing | "balancer.remora.io/weight" | "pod" | "0 to 10000" | [Unset::Number(100, "")] | "200" / "-1"
        | "Percent of an ordinary pod's share: [weights](#weights)"
    Balancing | "limits.remora.io/connections" | "Service" | "number" | [NONE] | "10" / "0"
        | "Connections to its endpoints at once: [limits](#limits)"
    Balancing | "limits.remora.io/pending-requests" | "Service" | "number" | [NONE] | "10" / "0"
        | "Requests that wait for a connection or an endpoint"
    Balancing | "limits.remora.io/concurrent-streams" | "Service" | "number" | [NONE] | "10" / "0"
        | "Requests under way at once"
    Balancing | "balancer.linkerd.io/failure-accrual" | "Service" | "`consecutive`, `unified`" | [NONE] | "consecutive" / "sometimes"
        | "When an endpoint counts as failing: [who is left out](#who-is-left-out). The others say nothing without it"
    Balancing | "balancer.linkerd.io/failure-accrual-consecutive-max-failures" | "Service" | "number" | [Unset::Number(MAX_FAILURES, "")] | "3" / "-1"
        | "Failures in a row"
    Balancing | "balancer.linkerd.io/failure-accrual-consecutive-min-penalty" | "Service" | "time" | [Unset::Time(MIN_PENALTY)] | "2s" / "soon"
        | "How long an endpoint is left out at first"
    Balancing | "balancer.linkerd.io/failure-accrual-consecutive-max-penalty" | "Service" | "time" | [Unset::Time(MAX_PENALTY)] | "5m" / "0s"
        | "And at most"
    Balancing | "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio" | "Service" | "0 to 100" | [Unset::Ratio(JITTER)] | "1" / "-1"
        | "How much of that is added at random; more than 1 is 1"
    Balancing | "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold" | "Service" | "0 to 1" | [Unset::Share(THRESHOLD)] | "0.9" / "2"
        | "`unified`: the least share of successes"
    Balancing | "balancer.alpha.linkerd.io/failure-accrual-success-rate-window" | "Service" | "time" | [Unset::Time(WINDOW)] | "30s" / "0s"
        | "`unified`: of the responses of so long"
    Balancing | "balancer.alpha.linkerd.io/failure-accrual-success-rate-min-requests" | "Service" | "number" | [Unset::Number(MIN_REQUESTS, "")] | "20" / "-1"
        | "`unified`: with fewer responses nothing is concluded"
    Balancing | "balancer.alpha.linkerd.io/failure-accrual-honor-retry-after" | "Service" | "`true`, `false`" | [Unset::Flag(HONOR_RETRY_AFTER)] | "true" / "perhaps"
        | "An endpoint is left out for as long as it asks for, if that is longer"
    Policy | "config.linkerd.io/default-inbound-policy" | "pod, namespace"
        | "`all-unauthenticated`, `all-authenticated`, `cluster-unauthenticated`, `cluster-authenticated`, `audit`, `deny`"
        | [Unset::Words("`--default-inbound-policy`")] | "deny" / "nobody"
        | "Who may use the ports that no Server is about"
    Policy | "config.linkerd.io/proxy-require-identity-inbound-ports" | "pod; the injector copies a namespace's" | "ports, ranges, names of the pod's ports" | [NONE] | "8080" / "none-such"
        | "Ports without a Server that take clients with an identity only, whatever the default policy"
    Policy | "config.linkerd.io/skip-inbound-ports" | "pod; the injector copies a namespace's" | "ports, ranges" | [NONE] | "8080" / "none-such"
        | "Ports that are not redirected to the pod's proxy: nobody is told to use mTLS with them"
    Policy | "config.remora.io/denial-header" | "pod, namespace" | "`enabled`, `disabled`" | [Unset::Words("`disabled`")] | "enabled" / "perhaps"
        | "Whether a meshed client that is refused is [told by whom](#who-is-admitted). The injector tells the pod's proxy"
    Plaintext | "config.linkerd.io/outbound-default-policy" | "pod, namespace"
        | "`all-unauthenticated`, `all-authenticated`, `cluster-authenticated`"
        | [Unset::Words("the injector's `defaultOutboundPolicy`")] | "all-authenticated" / "deny"
        | "Who may be reached in plaintext. The injector tells the pod's proxy"
    Profiles | "config.linkerd.io/opaque-ports" | "pod, Service, namespace" | "ports, ranges, names of the pod's or Service's ports"
        | [Unset::Words(OPAQUE_PORTS)] | "8080" / "none-such"
        | "Ports that are forwarded unread, whatever a profile says"
};

/// Is it one of [`PREFIXES`], and none that there is? Then those that there are of the prefix.
pub fn unknown(name: &str) -> Option<String> {
    let prefix = PREFIXES.into_iter().find(|prefix| name.starts_with(prefix))?;
    if ANNOTATIONS.iter().any(|known| known.name == name) {
        return None;
    }
    let known = ANNOTATIONS.iter().filter_map(|known| known.name.strip_prefix(prefix));
    Some(known.collect::<Vec<_>>().join(", "))
}

/// The table of a page.
pub fn table(page: Page) -> String {
    let mut table = "| annotation | on | value | default | |\n|---|---|---|---|---|\n".to_owned();
    for row in ANNOTATIONS.iter().filter(|row| row.page == page) {
        let _infallible = writeln!(
            table,
            "| `{}` | {} | {} | {} | {} |",
            row.name, row.on, row.value, row.default, row.help
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::Index,
        resources::{Document, Name, Resource, parse},
        watch::Event,
    };
    use std::{collections::BTreeSet, fs, path::Path};

    const BEGIN: &str = "<!-- printed from destination/src/annotations.rs -->\n";
    const END: &str = "<!-- to here -->\n";

    #[test]
    fn the_tables_of_the_pages_are_what_is_printed() {
        for page in Page::ALL {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page.file());
            let text = fs::read_to_string(&path).unwrap();
            let (before, rest) =
                text.split_once(BEGIN).unwrap_or_else(|| panic!("{}: no table", page.file()));
            let (_, after) = rest.split_once(END).unwrap();
            let renewed = format!("{before}{BEGIN}{}{END}{after}", table(page));
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&path, &renewed).unwrap();
            } else {
                let renew = "renew it with UPDATE=1 cargo test -p remora-destination --lib annotations";
                assert!(text == renewed, "{}: {renew}", page.file());
            }
        }
    }

    #[test]
    fn every_name_is_there_once_and_no_other_with_its_prefix_is_known() {
        let names: BTreeSet<&str> = ANNOTATIONS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ANNOTATIONS.len());
        assert!(names.iter().all(|name| unknown(name).is_none()));
        assert_eq!(unknown("timeout.linkerd.io/respnse").as_deref(), Some("request, response, idle"));
        assert_eq!(unknown("config.linkerd.io/whatever"), None);
    }

    /// A row whose annotation nobody reads would be a promise that nobody keeps.
    #[test]
    fn what_the_rows_say_is_read_and_mistakes_are_told() {
        for row in ANNOTATIONS {
            let told = complaints(row, row.example);
            assert!(told.is_empty(), "{}: {told:?}", row.name);
            let told = complaints(row, row.wrong);
            assert!(told.iter().any(|reason| reason.contains(row.name)), "{}: {told:?}", row.name);
        }
    }

    /// What is printed as a default is what holds: written out it changes nothing.
    #[test]
    fn without_an_annotation_its_default_holds() {
        let mut compared = 0;
        for row in ANNOTATIONS.iter().filter(|row| row.on == "Service" && row.default != NONE) {
            let default = row.default.to_string().replace('`', "");
            let service = |annotation: Option<&str>| {
                let mut index = Index::default();
                index.apply(Event::Apply(object(row, annotation)));
                index.service(&Name::new("a", "a")).unwrap().clone()
            };
            assert_eq!(service(Some(&default)), service(None), "{}", row.name);
            compared += 1;
        }
        assert_eq!(compared, 9);
    }

    #[test]
    fn a_name_that_is_none_is_told() {
        let slip = Annotation { name: "balancer.linkerd.io/failure-acrual", ..ANNOTATIONS[0] };
        let told = complaints(&slip, "consecutive");
        assert!(told.iter().any(|reason| reason.contains("there is no such annotation")), "{told:?}");
    }

    /// What is said of an object that carries the annotation.
    fn complaints(row: &Annotation, value: &str) -> Vec<String> {
        let changes = Index::default().apply(Event::Apply(object(row, Some(value))));
        changes.complaints.into_iter().map(|one| one.reason).collect()
    }

    /// An object with the annotation, if there is a value, and with those without which it says nothing.
    fn object(row: &Annotation, value: Option<&str>) -> Resource {
        const MODE: &str = "balancer.linkerd.io/failure-accrual";
        let needs_mode = row.page == Page::Balancing && row.name != MODE;
        let mode = if needs_mode { format!("{MODE}: unified, ") } else { String::new() };
        let own = value.map_or_else(String::new, |value| format!("{}: '{value}'", row.name));
        let metadata = format!("metadata: {{name: a, namespace: a, annotations: {{{mode}{own}}}}}");
        let object = if row.on.starts_with("pod") {
            format!("{{apiVersion: v1, kind: Pod, {metadata}, spec: {{containers: [{{name: a}}]}}}}")
        } else {
            format!("{{apiVersion: v1, kind: Service, {metadata}, spec: {{ports: [{{port: 80}}]}}}}")
        };
        let Document::Known(resource) = parse(&object).unwrap().remove(0) else { panic!("{object}") };
        resource
    }
}
