//! Pure. `linkerd.io/v1alpha2 ServiceProfile`, read strictly: whatever cannot be applied is a mistake with its path.
//! Contract 3.2, 4.3, 4.4; every field is described in `docs/profiles.md`.

mod conditions;

pub use conditions::RequestMatch;

use super::strict::{Mistakes, is_dns_name, join, milli_quantity};
use crate::ports::PortSet;
use conditions::{request, response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use remora_core::profile::{
    BudgetLimits, InvalidBudget, MAX_CLASSES, MAX_OVERRIDES, MAX_ROUTES, Patterns, ResponseClass,
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// Weights are in ten-thousandths: 10 000 is 1, or all of it. Contract 3.2.
const WEIGHT_UNIT: u128 = 10;

/// A ServiceProfile.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceProfile {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Arc<Spec>,
}

/// What a ServiceProfile says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// In order: the first that matches has the request.
    pub routes: Vec<Route>,
    /// What bounds retries, if it says so.
    pub budget: Option<BudgetLimits>,
    /// Where traffic goes instead.
    pub overrides: Vec<WeightedDst>,
    /// Ports of the Service that are forwarded without being read, besides those that annotations name.
    pub opaque_ports: PortSet,
}

/// One of its routes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name, the label `rt_route` of its metrics.
    pub name: String,
    /// Which requests it has.
    pub condition: RequestMatch,
    /// What its responses count as.
    pub classes: Vec<ResponseClass>,
    /// May requests be sent again?
    pub retryable: bool,
    /// How long a request may take until the head of its response.
    pub timeout: Option<Duration>,
}

/// A destination of a traffic split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedDst {
    /// `<svc>.<ns>.svc.<domain>`, with or without a port.
    pub authority: String,
    /// In ten-thousandths.
    pub weight: u32,
}

impl WeightedDst {
    /// Where it leads from a port of the profile's Service: without a port of its own to that one.
    pub fn authority_at(&self, port: u16) -> String {
        if self.authority.contains(':') {
            self.authority.clone()
        } else {
            format!("{}:{port}", self.authority)
        }
    }
}

impl ServiceProfile {
    /// Reads one, or says everything that is wrong with it.
    pub(super) fn read(value: &Value) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = Mistakes::default();
        let Some(fields) = mistakes.object("", value, &["apiVersion", "kind", "metadata", "spec"]) else {
            return Err(mistakes.0);
        };
        let metadata = mistakes.metadata(fields, "web.shop.svc.cluster.local");
        let spec = match mistakes.required("", fields, "spec") {
            Some(value) => spec(value, &mut mistakes),
            None => Spec::default(),
        };
        match metadata {
            Some(metadata) if mistakes.0.is_empty() => Ok(Self { metadata, spec: Arc::new(spec) }),
            _ => Err(mistakes.0),
        }
    }
}

fn spec(value: &Value, mistakes: &mut Mistakes) -> Spec {
    let known = ["routes", "retryBudget", "dstOverrides", "opaquePorts"];
    let Some(fields) = mistakes.object("spec", value, &known) else { return Spec::default() };
    let mut patterns = Patterns::new();
    let routes = mistakes.list("spec.routes", fields.get("routes"), MAX_ROUTES);
    let overrides = mistakes.list("spec.dstOverrides", fields.get("dstOverrides"), MAX_OVERRIDES);
    let ports = mistakes.list("spec.opaquePorts", fields.get("opaquePorts"), 1024);
    let routes: Vec<Route> =
        routes.iter().filter_map(|(path, value)| route(path, value, &mut patterns, mistakes)).collect();
    Spec {
        routes,
        budget: fields.get("retryBudget").and_then(|value| budget("spec.retryBudget", value, mistakes)),
        overrides: overrides.iter().filter_map(|(path, value)| weighted(path, value, mistakes)).collect(),
        opaque_ports: opaque_ports(&ports, mistakes),
    }
}

fn route(path: &str, value: &Value, patterns: &mut Patterns, mistakes: &mut Mistakes) -> Option<Route> {
    let known = ["name", "condition", "responseClasses", "isRetryable", "timeout"];
    let fields = mistakes.object(path, value, &known)?;
    let name = mistakes.required(path, fields, "name");
    let name = name.and_then(|name| mistakes.text(&join(path, "name"), name));
    let condition = mistakes.required(path, fields, "condition");
    let condition =
        condition.and_then(|value| request(&join(path, "condition"), value, 0, patterns, mistakes));
    let listed = mistakes.list(&join(path, "responseClasses"), fields.get("responseClasses"), MAX_CLASSES);
    let classes = listed.iter().filter_map(|(path, value)| response_class(path, value, mistakes)).collect();
    let retryable = mistakes.boolean(&join(path, "isRetryable"), fields.get("isRetryable"));
    let timeout = fields.get("timeout").and_then(|value| mistakes.duration(&join(path, "timeout"), value));
    Some(Route {
        name: name?.to_owned(),
        condition: condition?,
        classes,
        retryable,
        // None at all, as in Linkerd.
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
    })
}

fn response_class(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ResponseClass> {
    let fields = mistakes.object(path, value, &["condition", "isFailure"])?;
    let condition = mistakes.required(path, fields, "condition");
    let failure = mistakes.boolean(&join(path, "isFailure"), fields.get("isFailure"));
    let condition = response(&join(path, "condition"), condition?, 0, mistakes)?;
    Some(ResponseClass { condition, failure })
}

fn budget(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<BudgetLimits> {
    let fields = mistakes.object(path, value, &["retryRatio", "minRetriesPerSecond", "ttl"])?;
    let (ratio_at, ttl_at) = (join(path, "retryRatio"), join(path, "ttl"));
    let minimum_at = join(path, "minRetriesPerSecond");
    let ratio = mistakes.required(path, fields, "retryRatio").and_then(|value| {
        let ratio = value.as_f64();
        if ratio.is_none() {
            mistakes.add(&ratio_at, "expected a number");
        }
        ratio
    });
    let minimum = mistakes.required(path, fields, "minRetriesPerSecond");
    let minimum = minimum.and_then(|value| mistakes.number(&minimum_at, value));
    let ttl = mistakes.required(path, fields, "ttl").and_then(|value| mistakes.duration(&ttl_at, value));
    match BudgetLimits::new(ratio? as f32, minimum?, ttl?) {
        Ok(budget) => Some(budget),
        Err(invalid) => {
            let at = match invalid {
                InvalidBudget::Ratio(_) => ratio_at,
                InvalidBudget::Minimum(_) => minimum_at,
                InvalidBudget::Ttl(_) => ttl_at,
            };
            mistakes.add(&at, invalid.to_string());
            None
        }
    }
}

fn weighted(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<WeightedDst> {
    let fields = mistakes.object(path, value, &["authority", "weight"])?;
    let authority_at = join(path, "authority");
    let authority = mistakes.required(path, fields, "authority");
    let authority = authority.and_then(|value| mistakes.text(&authority_at, value));
    let authority = authority.and_then(|text| {
        let read = canonical(text);
        if read.is_none() {
            let shown: String = text.chars().take(80).collect();
            mistakes.add(&authority_at, format!("{shown:?} is no DNS name with or without a port"));
        }
        read
    });
    let weight = mistakes.required(path, fields, "weight").and_then(|value| {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let weight = milli_quantity(&text).and_then(|milli| u32::try_from(milli * WEIGHT_UNIT).ok());
        if weight.is_none() {
            let shown: String = text.chars().take(80).collect();
            let reason =
                format!("{shown:?} is no quantity from 0 to {}, such as 1 or 500m", u32::MAX / 10_000);
            mistakes.add(&join(path, "weight"), reason);
        }
        weight
    });
    Some(WeightedDst { authority: authority?, weight: weight? })
}

fn opaque_ports(items: &[(String, &Value)], mistakes: &mut Mistakes) -> PortSet {
    let mut all = String::new();
    for (path, value) in items {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match PortSet::parse(&text, |_| None) {
            (ports, invalid) if invalid.is_empty() && !ports.is_empty() && !text.contains(',') => {
                all.extend([text.as_str(), ","]);
            }
            _ => {
                let shown: String = text.chars().take(80).collect();
                mistakes
                    .add(path, format!("{shown:?} is no port (1 to 65535) and no range such as 8000-8010"));
            }
        }
    }
    PortSet::parse(&all, |_| None).0
}

/// A name in lower case without a final dot, with its port if it has one.
fn canonical(authority: &str) -> Option<String> {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse::<u16>().ok().filter(|port| *port > 0)?)),
        None => (authority, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    is_dns_name(&name).then(|| port.map_or_else(|| name.clone(), |port| format!("{name}:{port}")))
}

#[cfg(test)]
mod tests;
