//! Part 1: each manifest, and what the injector's patch made of its pods.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::changes::{Changes, changes, options};
use super::stage::{FILES, Stage};
use super::tell::Teller;
use crate::world::{kind, name, parse};

/// Options of the init container that tell what is redirected where.
const TELLING: [&str; 3] = ["--incoming-proxy-port", "--outgoing-proxy-port", "--proxy-uid"];

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    for (file, yaml) in FILES {
        let objects = parse(yaml).with_context(|| file.to_owned())?;
        let is_workload = |object: &&Value| matches!(kind(object), "Pod" | "Deployment");
        let others: Vec<&str> = objects.iter().filter(|object| !is_workload(object)).map(kind).collect();
        teller.line(file, others.join(", "));
        for object in objects.iter().filter(is_workload) {
            workload(stage, teller, object)?;
        }
    }
    Ok(())
}

fn workload(stage: &Stage, teller: &mut Teller, object: &Value) -> Result<()> {
    let of = name(object);
    let (before, pods) = match kind(object) {
        "Deployment" => {
            let template = object.pointer("/spec/template").context("a Deployment has a template")?;
            (template, stage.mesh.pods(&of.namespace, "app", &of.name))
        }
        _ => (object, vec![stage.mesh.pod(&of.namespace, &of.name)?]),
    };
    let pod = pods.first().with_context(|| format!("{} {of} has no pods", kind(object)))?;
    let after = serde_json::to_value(pod.object())?;
    let made = changes(before, &after);
    let what = match pods.len() {
        1 => format!("  {} {}", kind(object), of.name),
        n => format!("  {} {} × {n}", kind(object), of.name),
    };
    if wants_injection(stage, before, &of.namespace) {
        injected(teller, &what, &made);
    } else {
        let seen = if made.is_none() { "left alone: nothing was added".into() } else { format!("{made:?}") };
        teller.holds(&what, made.is_none(), seen);
    }
    Ok(())
}

/// Contract 6.2, as far as these manifests use it: the pod's own annotation, else its namespace's.
fn wants_injection(stage: &Stage, template: &Value, namespace: &str) -> bool {
    let annotation = |object: &Value| {
        let value = object.pointer("/metadata/annotations/linkerd.io~1inject");
        value.and_then(Value::as_str).map(|value| value == "enabled")
    };
    let of_namespace = || annotation(&stage.mesh.object("Namespace", "", namespace)?);
    annotation(template).or_else(of_namespace).unwrap_or(false)
}

fn injected(teller: &mut Teller, what: &str, made: &Changes) {
    let (Some((init, args)), Some((proxy, variables))) = (made.init.first(), made.sidecars.first()) else {
        return teller.claim(what, Err(format!("the proxy is missing: {made:?}")));
    };
    let told = options(args);
    let told = told.iter().filter(|option| TELLING.iter().any(|telling| option.starts_with(telling)));
    let told: Vec<&str> = told.map(String::as_str).collect();
    teller.claim(what, Ok(format!("+ {init} {}", told.join(" "))));
    teller.line(
        "",
        format_args!(
            "+ {proxy}, {variables} variables, {} volumes; {} annotations; labels {}",
            made.volumes.len(),
            made.annotations.len(),
            made.labels
                .iter()
                .map(|label| label.trim_start_matches("linkerd.io/"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    );
}
