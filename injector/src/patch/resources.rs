//! Pure. What proxy and init container ask of the node, so that the pod keeps its quality of service.

use std::collections::BTreeMap;

#[cfg(planted)]
use remora_core::planted;
use serde_json::{Value, json};

use crate::{
    annotations::Settings,
    config::{Amounts, Resources},
    pod::Quality,
    values,
};

/// The `resources` of proxy and init container (`None`: nothing to ask for), and warnings where annotations were
/// changed to keep a Guaranteed pod what it is.
///
/// What annotations ask for counts in every pod; a BestEffort pod becomes Burstable by it, which is then what its owner
/// wrote. Defaults fill what they leave open, in Burstable and Guaranteed pods only.
pub fn resources(
    quality: Quality,
    settings: &Settings,
    defaults: &Resources,
) -> (Option<Value>, Vec<String>) {
    let mut requests: BTreeMap<&str, String> = settings.resources.requests.clone();
    let mut limits: BTreeMap<&str, String> = settings.resources.limits.clone();
    let mut warnings = Vec::new();
    match quality {
        Quality::BestEffort | Quality::OfThePod => {}
        Quality::Burstable => {
            for (name, amount) in amounts(&defaults.burstable) {
                // With a limit alone Kubernetes takes it for the request; a default above it would be invalid.
                if !limits.contains_key(name) {
                    requests.entry(name).or_insert_with(|| amount.clone());
                }
            }
        }
        Quality::Guaranteed => {
            for (name, default) in amounts(&defaults.guaranteed) {
                for asked in [&mut requests, &mut limits] {
                    // Kubernetes takes a zero for nothing asked, and the pod for Burstable.
                    if asked.get(name).is_some_and(|amount| is_zero(amount)) {
                        asked.remove(name);
                        warnings.push(format!(
                            "the pod is Guaranteed, which a proxy without {name} would end: its {name} is not set to 0"
                        ));
                    }
                }
                let (request, limit) = (requests.get(name), limits.get(name));
                if request.is_some() && limit.is_some() && request != limit {
                    warnings.push(format!(
                        "the pod is Guaranteed, so the proxy's {name} request is raised or lowered to its limit"
                    ));
                }
                let amount = limit.or(request).unwrap_or(default).clone();
                requests.insert(name, amount.clone());
                limits.insert(name, amount);
            }
        }
    }
    // Kubernetes refuses a pod that asks for more than it may have.
    for (name, limit) in &limits {
        let over = |request: &String| match (values::quantity(request), values::quantity(limit)) {
            (Ok(request), Ok(limit)) => request > limit,
            _ => false,
        };
        if requests.get(name).is_some_and(over) {
            warnings.push(format!("the proxy's {name} request is lowered to its limit"));
            requests.insert(name, limit.clone());
        }
    }
    #[cfg(planted)]
    if quality == Quality::Guaranteed && planted::makes(planted::Mistake::GuaranteeIsLost) {
        limits.clear();
    }
    if requests.is_empty() && limits.is_empty() {
        return (None, warnings);
    }
    let mut resources = serde_json::Map::new();
    for (field, amounts) in [("limits", limits), ("requests", requests)] {
        if !amounts.is_empty() {
            resources.insert(field.to_owned(), json!(amounts));
        }
    }
    (Some(Value::Object(resources)), warnings)
}

fn is_zero(amount: &str) -> bool {
    values::quantity(amount).is_ok_and(values::Millis::is_zero)
}

fn amounts(amounts: &Amounts) -> [(&'static str, &String); 2] {
    [("cpu", &amounts.cpu), ("memory", &amounts.memory)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InjectorConfig;

    #[expect(clippy::needless_pass_by_value, reason = "callers are tables")]
    fn check(quality: Quality, asked: &[(&str, &'static str, &str)], expected: Option<Value>) {
        let config = InjectorConfig::default();
        let mut settings = Settings::new(&config);
        for (field, name, amount) in asked {
            let amounts = if *field == "limit" {
                &mut settings.resources.limits
            } else {
                &mut settings.resources.requests
            };
            amounts.insert(name, (*amount).to_owned());
        }
        assert_eq!(resources(quality, &settings, &config.resources).0, expected);
    }

    #[test]
    fn a_best_effort_pod_asks_for_nothing() {
        check(Quality::BestEffort, &[], None);
        check(Quality::OfThePod, &[], None);
    }

    #[test]
    fn a_burstable_pod_gets_requests() {
        check(Quality::Burstable, &[], Some(json!({"requests": {"cpu": "20m", "memory": "20Mi"}})));
    }

    #[test]
    fn a_limit_below_the_default_request_is_not_contradicted() {
        check(
            Quality::Burstable,
            &[("limit", "memory", "10Mi")],
            Some(json!({"limits": {"memory": "10Mi"}, "requests": {"cpu": "20m"}})),
        );
    }

    #[test]
    fn a_guaranteed_pod_gets_limits_that_equal_its_requests() {
        let both = json!({"cpu": "250m", "memory": "128Mi"});
        check(Quality::Guaranteed, &[], Some(json!({"limits": both, "requests": both})));
        let asked = json!({"cpu": "2", "memory": "1Gi"});
        check(
            Quality::Guaranteed,
            &[("request", "cpu", "1"), ("limit", "cpu", "2"), ("request", "memory", "1Gi")],
            Some(json!({"limits": asked, "requests": asked})),
        );
    }

    #[test]
    fn a_request_over_its_limit_is_lowered_to_it() {
        let asked = [("request", "memory", "1Gi"), ("limit", "memory", "64Mi")];
        check(
            Quality::Burstable,
            &asked,
            Some(json!({"limits": {"memory": "64Mi"}, "requests": {"cpu": "20m", "memory": "64Mi"}})),
        );
        check(
            Quality::BestEffort,
            &asked,
            Some(json!({"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}})),
        );
    }

    #[test]
    fn a_guaranteed_pod_stays_guaranteed_whoever_asks_for_nothing() {
        let both = json!({"cpu": "250m", "memory": "128Mi"});
        check(
            Quality::Guaranteed,
            &[("limit", "cpu", "0"), ("request", "cpu", "0m"), ("limit", "memory", "0Gi")],
            Some(json!({"limits": both, "requests": both})),
        );
    }

    #[test]
    fn annotations_count_in_every_pod() {
        check(
            Quality::BestEffort,
            &[("request", "ephemeral-storage", "1Gi")],
            Some(json!({"requests": {"ephemeral-storage": "1Gi"}})),
        );
    }
}
