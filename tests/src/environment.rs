//! A container's environment, as a kubelet computes it: `$(VAR)` expansion, the downward API, ConfigMaps and Secrets.
//!
//! Pure: everything is looked up in what is handed in.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector};

/// Where ConfigMaps and Secrets are found.
pub trait Lookup {
    /// The keys of a ConfigMap, as text or bytes.
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
    /// The keys of a Secret, decoded.
    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
}

/// The environment in the order in which it was defined; a later definition of a name replaces an earlier one.
///
/// # Errors
/// A reference to something that does not exist and is not optional, or a field that the downward API lacks.
pub fn environment(
    pod: &Pod,
    container: &Container,
    image: &[(String, String)],
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>> {
    let mut defined = Environment::default();
    for (name, value) in image {
        defined.set(name, value.clone());
    }
    defined.set("HOSTNAME", pod.metadata.name.clone().unwrap_or_default());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (found, what, optional) = if let Some(reference) = &source.config_map_ref {
            (lookup.config_map(namespace, &reference.name), &reference.name, reference.optional)
        } else if let Some(reference) = &source.secret_ref {
            (lookup.secret(namespace, &reference.name), &reference.name, reference.optional)
        } else {
            continue;
        };
        let Some(found) = found else {
            if optional == Some(true) {
                continue;
            }
            bail!("envFrom: there is no {what} in namespace {namespace}");
        };
        for (key, value) in found {
            defined.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &defined.values)),
            Some(source) => value_from(pod, container, source, lookup)
                .with_context(|| format!("env {}", variable.name))?,
        };
        if let Some(value) = value {
            defined.set(&variable.name, value);
        }
    }
    Ok(defined.in_order())
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn in_order(mut self) -> Vec<(String, String)> {
        self.order
            .into_iter()
            .filter_map(|name| self.values.remove(&name).map(|value| (name, value)))
            .collect()
    }
}

/// Replaces `$(NAME)` by its value. An unknown name stays as it is written; `$$` is one dollar.
pub fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, from) = rest.split_at(dollar);
        expanded.push_str(before);
        if let Some(after) = from.strip_prefix("$$") {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = from.strip_prefix("$(").and_then(|named| named.split_once(')')) {
            match values.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    expanded.push_str(rest);
    expanded
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    lookup: &dyn Lookup,
) -> Result<Option<String>> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(field) = &source.field_ref {
        return field_ref(pod, field).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_ref(container, resource).map(Some);
    }
    let (found, name, key, optional) = if let Some(reference) = &source.config_map_key_ref {
        (lookup.config_map(namespace, &reference.name), &reference.name, &reference.key, reference.optional)
    } else if let Some(reference) = &source.secret_key_ref {
        (lookup.secret(namespace, &reference.name), &reference.name, &reference.key, reference.optional)
    } else {
        bail!("valueFrom names no source that the harness knows");
    };
    match found.and_then(|keys| keys.get(key).cloned()) {
        Some(value) => {
            Ok(Some(String::from_utf8(value).with_context(|| format!("{name}/{key} is not text"))?))
        }
        None if optional == Some(true) => Ok(None),
        None => bail!("there is no key {key} in {namespace}/{name}"),
    }
}

/// One field of the downward API.
pub fn field_ref(pod: &Pod, field: &ObjectFieldSelector) -> Result<String> {
    let path = field.field_path.as_str();
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let node_ip = || status.and_then(|status| status.host_ip.clone());
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
        "status.podIPs" => status
            .and_then(|status| status.pod_ips.as_ref())
            .map(|ips| ips.iter().map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")),
        "status.hostIP" | "status.hostIPs" => node_ip(),
        _ => {
            let labels = subscript(path, "metadata.labels").map(|key| (key, &meta.labels));
            let found = labels
                .or_else(|| subscript(path, "metadata.annotations").map(|key| (key, &meta.annotations)));
            let Some((key, map)) = found else { bail!("fieldPath {path} is not in the downward API") };
            return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
        }
    };
    value.with_context(|| format!("fieldPath {path} has no value yet"))
}

fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// All labels or annotations in the form that a downwardAPI volume has.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (key, value) in map.into_iter().flatten() {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{key}={value:?}");
    }
    text
}

/// A container's own limit or request, in whole units of the divisor (rounded up), as the kubelet prints it.
pub fn resource_ref(container: &Container, field: &ResourceFieldSelector) -> Result<String> {
    let resources = container.resources.as_ref();
    let (map, name) = match field.resource.split_once('.') {
        Some(("limits", name)) => (resources.and_then(|resources| resources.limits.as_ref()), name),
        Some(("requests", name)) => (resources.and_then(|resources| resources.requests.as_ref()), name),
        _ => bail!("resourceFieldRef {} is neither limits.X nor requests.X", field.resource),
    };
    let divisor =
        field.divisor.as_ref().map(|divisor| milli(&divisor.0)).transpose()?.filter(|divisor| *divisor > 0);
    let divisor = divisor.unwrap_or(1000);
    let found = map.and_then(|map| map.get(name)).map(|quantity| milli(&quantity.0)).transpose()?;
    // Without a limit the kubelet reports what the node can give.
    let node = match name {
        "cpu" => std::thread::available_parallelism().map_or(1, usize::from) as i128 * 1000,
        _ => 1 << 40,
    };
    let value = found.unwrap_or(node);
    Ok((value.saturating_add(divisor - 1) / divisor).to_string())
}

/// A Kubernetes quantity in thousandths.
fn milli(quantity: &str) -> Result<i128> {
    let digits = quantity.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(digits);
    let scale: i128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        _ => bail!("{quantity} is not a quantity that the harness reads"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 =
        format!("{whole}{fraction}").parse().with_context(|| format!("{quantity} is not a quantity"))?;
    let places = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    Ok(digits * scale / 10_i128.checked_pow(places).context("too many decimals")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_once_and_unknown_ones_stay() {
        let values = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("$(A)-$(A)", "1-1"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$(NONE) $", "$(NONE) $"),
            ("$(A", "$(A"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &values), expected, "{text}");
        }
    }

    #[test]
    fn the_downward_api_reads_labels_by_key() {
        let pod: Pod = from(serde_json::json!({"metadata": {"name": "p", "labels": {"app": "web"}}}));
        assert_eq!(field(&pod, "metadata.labels['app']").unwrap(), "web");
        assert_eq!(field(&pod, "metadata.labels['none']").unwrap(), "");
        assert_eq!(field(&pod, "metadata.labels").unwrap(), "app=\"web\"\n");
        assert!(field(&pod, "status.phase").is_err());
    }

    #[test]
    fn resources_are_counted_in_units_of_the_divisor_rounded_up() {
        let container: Container = from(
            serde_json::json!({"name": "c", "resources": {"limits": {"cpu": "250m", "memory": "20Mi"}}}),
        );
        for (resource, divisor, expected) in
            [("limits.cpu", "1", "1"), ("limits.cpu", "1m", "250"), ("limits.memory", "1Mi", "20")]
        {
            let field = serde_json::json!({"resource": resource, "divisor": divisor});
            assert_eq!(resource_ref(&container, &from(field)).unwrap(), expected, "{resource} / {divisor}");
        }
    }

    #[test]
    fn later_definitions_see_earlier_ones() {
        let pod: Pod = from(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}}));
        let container: Container = from(serde_json::json!({"name": "c", "env": [
            {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "URL", "value": "svc.$(NS):$(PORT)"},
            {"name": "PORT", "value": "80"},
        ]}));
        let env = environment(&pod, &container, &[], &Nothing).unwrap();
        assert_eq!(env.iter().find(|(name, _)| name == "URL").unwrap().1, "svc.n:$(PORT)");
    }

    #[test]
    fn a_missing_source_is_an_error_unless_optional() {
        let pod: Pod = from(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}}));
        let required: Container =
            from(serde_json::json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}]}));
        assert!(environment(&pod, &required, &[], &Nothing).is_err());
        let optional: Container = from(
            serde_json::json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m", "optional": true}}]}),
        );
        assert!(environment(&pod, &optional, &[], &Nothing).is_ok());
    }

    struct Nothing;

    impl Lookup for Nothing {
        fn config_map(&self, _: &str, _: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            None
        }

        fn secret(&self, _: &str, _: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            None
        }
    }

    fn field(pod: &Pod, path: &str) -> Result<String> {
        field_ref(pod, &ObjectFieldSelector { field_path: path.into(), api_version: None })
    }

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }
}
