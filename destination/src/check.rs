//! Pure. A directory of manifests without serving it: what it holds, and what is to be said of it: what cannot be read, and
//! how every route and policy resource stands.

use crate::{
    index::Index,
    view::{
        PolicyReport, ProfileReport, RouteReport, ServiceReport, Settings, policy_reports, profile_reports,
        route_reports, service_reports,
    },
    watch::directory::{FileReport, Manifests, Reading},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// What is to be said of a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Is everything read that is about a mesh, and every condition true?
    pub fine: bool,
    /// Why the directory cannot be read as a whole, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// How its files stand.
    pub files: BTreeMap<String, FileReport>,
    /// How its routes stand.
    pub routes: BTreeMap<String, RouteReport>,
    /// How its policy resources stand.
    pub policies: BTreeMap<String, PolicyReport>,
    /// How its ServiceProfiles stand.
    pub profiles: BTreeMap<String, ProfileReport>,
    /// How those of its Services stand of which something is to be said.
    pub services: BTreeMap<String, ServiceReport>,
    /// What is taken, and yet perhaps not as it is meant.
    pub warnings: Vec<String>,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Its objects. Of a file with mistakes there is none.
    pub index: Index,
    /// How its files stand.
    pub files: BTreeMap<String, FileReport>,
    /// What is taken, and yet perhaps not as it is meant.
    pub warnings: Vec<String>,
}

/// Takes in what a directory held.
pub fn load(reading: &Reading) -> Loaded {
    let mut manifests = Manifests::default();
    // Believed when two readings agree, as they do here.
    manifests.take(reading.clone());
    let taken = manifests.take(reading.clone());
    let mut index = Index::default();
    let mut warnings: Vec<String> = Vec::new();
    for event in taken.events {
        let complaints = index.apply(event).complaints;
        warnings.extend(complaints.into_iter().map(|one| format!("{}: {}", one.object, one.reason)));
    }
    warnings.extend(manifests.duplicates().map(|two| {
        format!("{} is in {} and in {}; the last file by name holds", two.object, two.ignored, two.holds)
    }));
    let files: BTreeMap<String, FileReport> =
        manifests.reports().into_iter().map(|(name, report)| (name.to_owned(), report)).collect();
    Loaded { index, files, warnings }
}

/// Checks what a directory held.
pub fn check(reading: &Reading, settings: &Settings) -> Checked {
    let Loaded { index, files, mut warnings } = load(reading);
    let routes: BTreeMap<String, RouteReport> =
        route_reports(&index, settings).map(|(id, report)| (id.to_string(), report)).collect();
    for (id, report) in &routes {
        warnings.extend(report.warnings.iter().map(|warning| format!("{id}: {warning}")));
    }
    let policies: BTreeMap<String, PolicyReport> = policy_reports(&index, settings).into_iter().collect();
    for (id, report) in &policies {
        warnings.extend(report.warnings.iter().map(|warning| format!("{id}: {warning}")));
    }
    let profiles: BTreeMap<String, ProfileReport> = profile_reports(&index, settings).collect();
    for (name, report) in profiles.iter().filter(|(_, report)| !report.applies.starts_with("Service ")) {
        warnings.push(format!("ServiceProfile {name}: it is about {}", report.applies));
    }
    let services: BTreeMap<String, ServiceReport> =
        service_reports(&index).map(|(name, report)| (name.to_string(), report)).collect();
    for (name, report) in &services {
        warnings.extend(report.warnings.iter().map(|warning| format!("Service {name}: {warning}")));
    }
    let fine = reading.incomplete.is_none()
        && files.values().all(|file| file.wrong().next().is_none())
        && routes.values().all(RouteReport::is_fine)
        && policies.values().all(PolicyReport::is_fine);
    let incomplete = reading.incomplete.clone();
    Checked { fine, incomplete, files, routes, policies, profiles, services, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::settings_for_tests;

    const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";

    fn of(files: &[(&str, &str)]) -> Checked {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())));
        check(&Reading { files: files.collect(), incomplete: None }, &settings_for_tests())
    }

    fn route(rules: &str) -> String {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, \
             spec: {{parentRefs: [{{group: core, kind: Service, name: web}}], rules: [{rules}]}}}}"
        )
    }

    #[test]
    fn fine_is_what_is_read_and_accepted() {
        for (files, fine) in [
            (&[("a", SERVICE), ("b", &route("{}"))][..], true),
            (&[("a", SERVICE), ("b", &route("{retry: 1}"))], false),
            (&[("a", SERVICE), ("b", "{")], false),
            (&[("a", SERVICE), ("b", &route("{sessionPersistence: {}}"))], false),
            (&[("a", SERVICE), ("b", &route("{backendRefs: [{name: none, port: 80}]}"))], false),
            (&[("b", &route("{}"))], false),
            (&[("a", &SERVICE.replace("v1, kind: Service,", "apps/v1, kind: Deployment,"))], true),
            (
                &[(
                    "a",
                    &SERVICE
                        .replace("v1, kind: Service,", "policy.linkerd.io/v1alpha1, kind: EgressNetwork,"),
                )],
                false,
            ),
            (
                &[("a", &SERVICE.replace("v1, kind: Service,", "policy.linkerd.io/v1alpha1, kind: Server,"))],
                false,
            ),
            (&[], true),
        ] {
            assert_eq!(of(files).fine, fine, "{files:?}");
        }
        let incomplete = Reading { incomplete: Some("gone".to_owned()), ..Reading::default() };
        assert!(!check(&incomplete, &settings_for_tests()).fine);
    }

    #[test]
    fn warnings_are_of_all_kinds() {
        let profile = "{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {name: web, namespace: shop}, spec: {}}";
        let annotated = SERVICE.replace("shop}", "shop, annotations: {retry.linkerd.io/limit: x}}");
        let placeholder = route(
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '${b}'}]}}]}",
        );
        let checked = of(&[("a", SERVICE), ("b", &annotated), ("c", profile), ("d", &placeholder)]);
        assert!(checked.fine, "{checked:?}");
        for part in
            ["retry.linkerd.io/limit", "is in a and in b", "it is about nothing", "${b} is no variable"]
        {
            assert_eq!(checked.warnings.iter().filter(|warning| warning.contains(part)).count(), 1, "{part}");
        }
    }
}
