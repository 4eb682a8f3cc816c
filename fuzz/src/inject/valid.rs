//! What the API server asks of a pod, as far as injection touches it (Kubernetes' `pkg/apis/core/validation`).

use super::{containers, name};
use remora_injector::values::quantity;
use serde_json::Value;
use std::collections::BTreeSet;

/// What is wrong with a pod, one sentence each.
pub(super) fn mistakes(pod: &Value) -> Vec<String> {
    let mut found = Found::default();
    let mut names = BTreeSet::new();
    let volumes: Vec<&str> = containers(pod, "volumes").map(name).collect();
    for volume in &volumes {
        found.unless(is_label(volume), || format!("volume {volume:?} has no name"));
        let alone = volumes.iter().filter(|other| *other == volume).count() == 1;
        found.unless(alone, || format!("two volumes {volume:?}"));
    }
    found.unless(containers(pod, "containers").next().is_some(), || "no container".to_owned());
    for list in ["initContainers", "containers"] {
        for container in containers(pod, list) {
            let title = name(container);
            found.unless(is_label(title), || format!("container {title:?} has no name"));
            found.unless(names.insert(title.to_owned()), || format!("two containers {title:?}"));
            of_container(container, list == "initContainers", &volumes, &mut found);
        }
    }
    for map in ["annotations", "labels"] {
        let entries =
            pod.pointer(&format!("/metadata/{map}")).and_then(Value::as_object).into_iter().flatten();
        for (key, value) in entries {
            found.unless(is_qualified(key), || format!("{map}: {key:?} is no name"));
            let is_value = |value: &str| value.is_empty() || (value.len() <= 63 && is_word(value));
            let fine = value.as_str().is_some_and(|value| map == "annotations" || is_value(value));
            found.unless(fine, || format!("{map}: {key}: {value} is no value"));
        }
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn unless(&mut self, fine: bool, mistake: impl FnOnce() -> String) {
        if !fine {
            self.0.push(mistake());
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn of_container(container: &Value, init: bool, volumes: &[&str], found: &mut Found) {
    let list = |field: &str| container.get(field).and_then(Value::as_array).into_iter().flatten();
    found.unless(!text(container, "image").trim().is_empty(), || "no image".to_owned());
    let policy = container.get("imagePullPolicy").and_then(Value::as_str).unwrap_or("Always");
    found.unless(["Always", "IfNotPresent", "Never"].contains(&policy), || format!("pull policy {policy:?}"));
    let restarts = container.get("restartPolicy").and_then(Value::as_str);
    let stays = init && restarts == Some("Always");
    found.unless(restarts.is_none() || stays, || format!("restart policy {restarts:?}"));
    for only in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        let fine = !init || stays || container.get(only).is_none();
        found.unless(fine, || format!("{only} of an init container that ends"));
    }
    let mut names = BTreeSet::new();
    for port in list("ports") {
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or_default();
        found.unless((1..=65535).contains(&number), || format!("port {number}"));
        let title = text(port, "name");
        let fine =
            title.len() <= 15 && is_label(title) && title.bytes().any(|byte| byte.is_ascii_lowercase());
        found.unless(title.is_empty() || fine, || format!("port name {title:?}"));
        found.unless(title.is_empty() || names.insert(title.to_owned()), || format!("two ports {title:?}"));
    }
    for variable in list("env") {
        let title = text(variable, "name");
        found.unless(!title.is_empty() && !title.contains(['=', '\0']), || format!("variable {title:?}"));
        let one = variable.get("value").is_none() || variable.get("valueFrom").is_none();
        found.unless(one, || format!("{title} has two values"));
    }
    let mut paths = BTreeSet::new();
    for mount in list("volumeMounts") {
        found.unless(volumes.contains(&name(mount)), || format!("there is no volume {:?}", name(mount)));
        let path = text(mount, "mountPath");
        found.unless(!path.is_empty() && paths.insert(path.to_owned()), || format!("mount path {path:?}"));
    }
    let amount = |field: &str, resource: &str| {
        container.pointer(&format!("/resources/{field}/{resource}"))?.as_str().map(quantity)
    };
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        match (amount("requests", resource), amount("limits", resource)) {
            (Some(Err(_)), _) | (_, Some(Err(_))) => found.0.push(format!("{resource} is no quantity")),
            (Some(Ok(request)), Some(Ok(limit))) => {
                found.unless(request <= limit, || format!("{resource}: {request:?} of at most {limit:?}"));
            }
            _ => {}
        }
    }
}

/// RFC 1123, as names of containers and volumes are.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && is_word(text) && text.bytes().all(inner)
}

/// Letters and digits, with `-`, `_` and `.` between them.
fn is_word(text: &str) -> bool {
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    outer(text.bytes().next()) && outer(text.bytes().last()) && text.bytes().all(inner)
}

fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_domain = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(is_label);
    name.len() <= 63 && is_word(name) && prefix.is_none_or(is_domain)
}
