//! Pure. How the Services want to be balanced that a policy leads to: by its routes, their mirrors, and the ServiceProfile
//! that its client has.

use super::{HeldRoute, Lens, Mirrors, Settings, Target};
use crate::resources::{Name, Spec};
use remora_core::balance::Balancing;
use std::collections::{BTreeMap, BTreeSet};

/// By the name that endpoints are asked for by, of those that do not want the default.
pub type Balancers = BTreeMap<String, Balancing>;

/// Those of a port of a Service.
pub(super) fn balancers(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, port): (&Name, u16),
    routes: &[HeldRoute],
    profile: Option<&Spec>,
) -> Balancers {
    let path = |(name, port): &(Name, u16)| format!("{}:{port}", settings.service_name(name));
    let mut named: BTreeMap<String, Name> =
        routed(routes).iter().map(|to| (path(to), to.0.clone())).collect();
    named.insert(path(&(name.clone(), port)), name.clone());
    for dst in profile.iter().flat_map(|profile| &profile.overrides) {
        // What is no Service is not balanced here.
        if let Ok(Target::Service { name, host: None, .. }) =
            Target::parse(&dst.authority, &settings.cluster_domain)
        {
            named.insert(dst.authority_at(port), name);
        }
    }
    let wants = |(path, name): (String, Name)| {
        let balancing = lens.declared(&name)?.balancing;
        (balancing != Balancing::default()).then_some((path, balancing))
    };
    named.into_iter().filter_map(wants).collect()
}

fn routed(routes: &[HeldRoute]) -> BTreeSet<(Name, u16)> {
    let of_mirrors = |mirrors: &Mirrors| mirrors.values().cloned().collect::<Vec<_>>();
    let mut found = BTreeSet::new();
    for rule in routes.iter().flat_map(|route| &route.rules) {
        found.extend(of_mirrors(&rule.mirrors));
        for (_, backend) in rule.shares() {
            found.extend(backend.target.clone());
            found.extend(of_mirrors(&backend.mirrors));
        }
    }
    found
}
