//! From applied manifests to objects and pods: what the API server and its controllers do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::container::capabilities;
use crate::kubelet::{Kubelet, Runtime};
use crate::life::Life;
use crate::probe::Schedule;
use crate::supervise::write_volumes;
use crate::token::{unique_id, unix_now};
use crate::webhook;
use crate::world::{Name, kind, name};

/// More than any grace period that a test has patience for.
const DELETION: Duration = Duration::from_mins(10);

/// Applies objects in an order in which each finds what it needs; returns the pods that were created.
pub async fn apply(kubelet: &Arc<Kubelet>, objects: Vec<Value>) -> Result<Vec<Name>> {
    let (pods, others): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|object| matches!(kind(object), "Pod" | "Deployment"));
    for mut object in others {
        let what = format!("{} {}", kind(&object), name(&object));
        let is_namespace = kind(&object) == "Namespace";
        admit(kubelet, &mut object).await.with_context(|| what)?;
        if is_namespace {
            // Whoever is asked about the objects in it looks at the namespace.
            kubelet.publish().await;
        }
    }
    kubelet.publish().await;
    refresh_volumes(kubelet)?;
    let mut created = Vec::new();
    for object in pods {
        let what = format!("{} {}", kind(&object), name(&object));
        if kind(&object) == "Pod" {
            created.push(create_pod(kubelet, object).await.with_context(|| what)?);
        } else {
            created.extend(create_deployment(kubelet, object).await.with_context(|| what)?);
        }
    }
    Ok(created)
}

async fn admit(kubelet: &Kubelet, object: &mut Value) -> Result<()> {
    if matches!(kind(object), "StatefulSet" | "DaemonSet" | "Job" | "CronJob") {
        bail!("the harness runs Pods and Deployments; write this workload as one of them");
    }
    let old = kubelet.world().object(kind(object), &name(object)).cloned();
    stamp(object, old.as_ref())?;
    if kind(object) == "Service" {
        *object = webhook::review(kubelet, "services", object.take()).await?;
        cluster_ips(kubelet, object, old.as_ref())?;
    }
    kubelet.world().put(object.take());
    Ok(())
}

/// Namespace, uid and creation time, kept over changes.
fn stamp(object: &mut Value, old: Option<&Value>) -> Result<()> {
    let namespace = name(object).namespace;
    let kept = |field: &str| old.and_then(|old| old.get("metadata")?.get(field)).cloned();
    let uid = kept("uid").map_or_else(|| unique_id().map(Value::from), Ok)?;
    let created = kept("creationTimestamp")
        .map_or_else(|| now().and_then(|now| serde_json::to_value(now).context("printing the time")), Ok)?;
    let meta =
        object.get_mut("metadata").and_then(Value::as_object_mut).context("metadata is not a mapping")?;
    if !namespace.is_empty() {
        meta.insert("namespace".into(), namespace.into());
    }
    meta.insert("uid".into(), uid);
    meta.insert("creationTimestamp".into(), created);
    Ok(())
}

/// The time of day as objects carry it, in whole seconds.
fn now() -> Result<Time> {
    let seconds = i64::try_from(unix_now()?).context("the clock is beyond all measure")?;
    Ok(Time(Timestamp::from_second(seconds).ok().context("the clock is beyond all measure")?))
}

/// Gives a Service the addresses it has, asks for, or gets.
fn cluster_ips(kubelet: &Kubelet, service: &mut Value, old: Option<&Value>) -> Result<()> {
    let spec = service.get_mut("spec").and_then(Value::as_object_mut).context("a Service needs a spec")?;
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        bail!("the harness has no Services of type ExternalName: there is no outside");
    }
    let kept = old.and_then(|old| old.get("spec")?.get("clusterIPs")).cloned();
    let asked = spec.get("clusterIP").and_then(Value::as_str).map(|ip| json!([ip]));
    let ips = if let Some(ips) = spec.get("clusterIPs").cloned().or(asked).or(kept) {
        ips
    } else {
        let (v4, v6) = kubelet.next_cluster_ips()?;
        let policy = spec.get("ipFamilyPolicy").and_then(Value::as_str).unwrap_or("SingleStack");
        let first = spec.get("ipFamilies").and_then(|families| families.get(0)).and_then(Value::as_str);
        match (policy, first) {
            ("SingleStack", Some("IPv6")) => json!([v6]),
            ("SingleStack", _) => json!([v4]),
            (_, Some("IPv6")) => json!([v6, v4]),
            _ => json!([v4, v6]),
        }
    };
    spec.insert("clusterIP".into(), ips.get(0).cloned().unwrap_or_default());
    spec.insert("clusterIPs".into(), ips);
    Ok(())
}

/// ConfigMaps and Secrets may have changed: running pods see it, as with a kubelet.
fn refresh_volumes(kubelet: &Kubelet) -> Result<()> {
    let running: Vec<Name> = kubelet.pods().keys().cloned().collect();
    for name in running {
        let pod = kubelet.world().pods.get(&name).cloned();
        if let Some(pod) = pod.filter(|pod| pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()))
        {
            write_volumes(kubelet, &pod).with_context(|| format!("the volumes of {name}"))?;
        }
    }
    Ok(())
}

/// Its replicas as pods, owned by a ReplicaSet, all within this call; a Deployment that exists already is scaled.
async fn create_deployment(kubelet: &Arc<Kubelet>, mut deployment: Value) -> Result<Vec<Name>> {
    let of = name(&deployment);
    let old = kubelet.world().object("Deployment", &of).cloned();
    stamp(&mut deployment, old.as_ref())?;
    let uid =
        |object: &Value| object.get("metadata").and_then(|meta| meta.get("uid")).cloned().unwrap_or_default();
    let spec = deployment.get("spec").cloned().context("a Deployment needs a spec")?;
    let template = spec.get("template").cloned().context("a Deployment needs spec.template")?;
    let replicas = spec.get("replicas").and_then(Value::as_u64).unwrap_or(1);
    let set_name = Name::new(of.namespace.clone(), format!("{}-{}", of.name, template_hash(&template)));
    let owner = |kind: &str, name: &str, uid: Value| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}]);
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "spec": spec,
        "metadata": {"name": set_name.name, "namespace": of.namespace,
                     "ownerReferences": owner("Deployment", &of.name, uid(&deployment))},
    });
    let old = kubelet.world().object("ReplicaSet", &set_name).cloned();
    stamp(&mut set, old.as_ref())?;
    let set_owner = owner("ReplicaSet", &set_name.name, uid(&set));
    kubelet.world().put(deployment);
    kubelet.world().put(set);
    // The injector asks whose the pods are, and reads it where the control plane does.
    kubelet.publish().await;
    let mut created = Vec::new();
    for n in 0..replicas {
        let mut pod = template.clone();
        let pod_name = format!("{}-{n}", set_name.name);
        let fields = pod.as_object_mut().context("spec.template is not a mapping")?;
        fields.insert("apiVersion".into(), "v1".into());
        fields.insert("kind".into(), "Pod".into());
        let meta = fields.entry("metadata").or_insert_with(|| json!({}));
        let meta = meta.as_object_mut().context("spec.template.metadata is not a mapping")?;
        meta.insert("name".into(), pod_name.clone().into());
        meta.insert("namespace".into(), of.namespace.clone().into());
        meta.insert("ownerReferences".into(), set_owner.clone());
        let labels = meta.entry("labels").or_insert_with(|| json!({}));
        let hash = template_hash(&template);
        labels
            .as_object_mut()
            .context("labels is not a mapping")?
            .insert("pod-template-hash".into(), hash.into());
        if !kubelet.world().pods.contains_key(&Name::new(of.namespace.clone(), pod_name)) {
            created.push(create_pod(kubelet, pod).await?);
        }
    }
    Ok(created)
}

/// Eight hexadecimal digits of FNV-1a: the same template, the same ReplicaSet.
fn template_hash(template: &Value) -> String {
    let hash = template
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

async fn create_pod(kubelet: &Arc<Kubelet>, mut object: Value) -> Result<Name> {
    stamp(&mut object, None)?;
    let spec = object.get_mut("spec").and_then(Value::as_object_mut).context("a Pod needs a spec")?;
    // What the API server's ServiceAccount admission does before webhooks see the pod.
    let account = spec.get("serviceAccount").cloned().unwrap_or_else(|| "default".into());
    spec.entry("serviceAccountName").or_insert(account);
    let reviewed = webhook::review(kubelet, "pods", object).await?;
    let mut pod: Pod = serde_json::from_value(reviewed).context("this is not a Pod")?;
    let spec = pod.spec.as_mut().context("a Pod needs a spec")?;
    if spec.host_network == Some(true) {
        bail!("the harness gives every pod a network namespace of its own: hostNetwork is not possible");
    }
    spec.node_name = Some(kubelet.node_name.clone());
    check_pod(kubelet, &pod)?;
    let name = Name::of(&pod);
    if kubelet.world().pods.contains_key(&name) {
        bail!("it exists already; pods cannot be changed: delete it first");
    }
    start(kubelet, name.clone(), pod);
    kubelet.refresh_status(&name);
    kubelet.publish().await;
    Ok(name)
}

/// What can be known to be wrong before anything runs.
fn check_pod(kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let spec = pod.spec.clone().unwrap_or_default();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let what = || format!("container {}", container.name);
        let image = container
            .image
            .as_deref()
            .with_context(|| format!("container {} has no image", container.name))?;
        kubelet.layers.image(image).with_context(what)?;
        let security = container.security_context.as_ref();
        capabilities(security.and_then(|security| security.capabilities.as_ref())).with_context(what)?;
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in probes.into_iter().flatten() {
            Schedule::of(probe).with_context(what)?;
        }
    }
    Ok(())
}

fn start(kubelet: &Arc<Kubelet>, name: Name, pod: Pod) {
    let (stop, told) = watch::channel(None);
    let (has_ended, ended) = watch::channel(false);
    let runtime = Runtime {
        sandbox: 0,
        ips: Vec::new(),
        facts: std::collections::BTreeMap::new(),
        processes: std::collections::BTreeMap::new(),
        stop,
        ended,
    };
    kubelet.pods().insert(name.clone(), runtime);
    kubelet.world().pods.insert(name.clone(), pod);
    let life = Life { kubelet: kubelet.clone(), name, stop: told };
    tokio::spawn(async move {
        Box::pin(life.run()).await;
        // Nobody may wait for it any more.
        let _ = has_ended.send(true);
    });
}

/// Marks the pod as leaving, ends it, and forgets it.
pub async fn delete(kubelet: &Kubelet, name: &Name, grace: Option<Duration>) -> Result<()> {
    let mut ended = {
        let pods = kubelet.pods();
        let runtime = pods.get(name).with_context(|| format!("there is no pod {name}"))?;
        let own = kubelet
            .world()
            .pods
            .get(name)
            .and_then(|pod| pod.spec.as_ref()?.termination_grace_period_seconds);
        let own = Duration::from_secs(own.and_then(|own| u64::try_from(own).ok()).unwrap_or(30));
        let _ = runtime.stop.send(Some(grace.unwrap_or(own)));
        runtime.ended.clone()
    };
    if let Some(pod) = kubelet.world().pods.get_mut(name) {
        pod.metadata.deletion_timestamp = Some(now()?);
    }
    kubelet.publish().await;
    let waited = tokio::time::timeout(DELETION, ended.wait_for(|ended| *ended)).await.map(drop);
    if waited.is_err() {
        bail!("pod {name} did not end within {DELETION:?}");
    }
    kubelet.pods().remove(name);
    kubelet.world().pods.remove(name);
    kubelet.publish().await;
    Ok(())
}
