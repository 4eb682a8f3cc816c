//! What a pod's status says, from what its containers do.
//!
//! Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod, PodCondition, PodIP, PodStatus,
};

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    pub running: bool,
    /// Its startup probe has succeeded, or it runs and has none.
    pub started: bool,
    /// Its readiness probe says so, or it is started and has none.
    pub ready: bool,
    pub restarts: i32,
    /// Of the last time it ended: 128 and the signal's number if by a signal.
    pub exit_code: Option<i32>,
    /// It will not be started again.
    pub finished: bool,
    /// Why it waits or failed, for people.
    pub message: Option<String>,
}

/// Whether an init container is a native sidecar: started before the others and kept running.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The status of a pod with these addresses, whose containers are as `facts` say.
pub fn status(
    pod: &Pod,
    facts: &BTreeMap<String, ContainerFacts>,
    ips: &[IpAddr],
    host: IpAddr,
) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let init = spec.init_containers.unwrap_or_default();
    let of = |container: &Container| facts.get(&container.name).cloned().unwrap_or_default();
    let initialized = init.iter().all(|container| {
        let known = of(container);
        if is_sidecar(container) { known.started } else { known.exit_code == Some(0) }
    });
    let mains: Vec<ContainerFacts> = spec.containers.iter().map(of).collect();
    let all_ready = initialized
        && mains.iter().all(|known| known.ready)
        && init.iter().filter(|container| is_sidecar(container)).all(|container| of(container).ready);
    let failed_init = init.iter().any(|container| {
        let known = of(container);
        known.finished && known.exit_code != Some(0) && !is_sidecar(container)
    });
    let phase = if failed_init {
        "Failed"
    } else if !mains.is_empty() && mains.iter().all(|known| known.finished) {
        if mains.iter().all(|known| known.exit_code == Some(0)) { "Succeeded" } else { "Failed" }
    } else if initialized && mains.iter().any(|known| known.running || known.restarts > 0) {
        "Running"
    } else {
        "Pending"
    };
    let condition = |kind: &str, holds: bool| PodCondition {
        type_: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        ..PodCondition::default()
    };
    PodStatus {
        phase: Some(phase.into()),
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        host_ip: Some(host.to_string()),
        conditions: Some(vec![
            condition("PodScheduled", true),
            condition("Initialized", initialized),
            condition("ContainersReady", all_ready),
            condition("Ready", all_ready),
        ]),
        init_container_statuses: (!init.is_empty())
            .then(|| init.iter().map(|container| container_status(container, &of(container))).collect()),
        container_statuses: Some(
            spec.containers.iter().map(|container| container_status(container, &of(container))).collect(),
        ),
        ..PodStatus::default()
    }
}

fn container_status(container: &Container, facts: &ContainerFacts) -> ContainerStatus {
    let state = if facts.running {
        ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() }
    } else if let Some(exit_code) = facts.exit_code.filter(|_| facts.finished) {
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        let terminated = ContainerStateTerminated {
            exit_code,
            reason: Some(reason.into()),
            message: facts.message.clone(),
            ..ContainerStateTerminated::default()
        };
        ContainerState { terminated: Some(terminated), ..ContainerState::default() }
    } else {
        let reason = match (&facts.message, facts.exit_code) {
            (Some(_), _) => "CreateContainerError",
            (None, Some(_)) => "CrashLoopBackOff",
            (None, None) => "PodInitializing",
        };
        let waiting = ContainerStateWaiting { reason: Some(reason.into()), message: facts.message.clone() };
        ContainerState { waiting: Some(waiting), ..ContainerState::default() }
    };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ready: facts.ready || (facts.finished && facts.exit_code == Some(0)),
        started: Some(facts.started),
        restart_count: facts.restarts,
        state: Some(state),
        ..ContainerStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::is_ready;
    use serde_json::json;

    #[test]
    fn a_pod_is_pending_until_its_init_containers_are_done() {
        check(&[], "Pending", false);
        check(&[("init", done(0))], "Pending", false);
        check(&[("init", done(0)), ("side", up())], "Pending", false);
        check(&[("init", done(0)), ("side", up()), ("app", up())], "Running", true);
    }

    #[test]
    fn a_sidecar_that_is_not_ready_makes_the_pod_not_ready() {
        let unready = ContainerFacts { ready: false, ..up() };
        check(&[("init", done(0)), ("side", unready), ("app", up())], "Running", false);
    }

    #[test]
    fn a_failed_init_container_fails_the_pod() {
        check(&[("init", done(1))], "Failed", false);
    }

    #[test]
    fn a_pod_ends_as_its_containers_do() {
        check(&[("init", done(0)), ("side", up()), ("app", done(0))], "Succeeded", false);
        check(&[("init", done(0)), ("side", up()), ("app", done(137))], "Failed", false);
    }

    #[test]
    fn a_crashed_container_leaves_the_pod_running() {
        let crashed = ContainerFacts { restarts: 1, exit_code: Some(1), ..ContainerFacts::default() };
        check(&[("init", done(0)), ("side", up()), ("app", crashed)], "Running", false);
    }

    fn up() -> ContainerFacts {
        ContainerFacts { running: true, started: true, ready: true, ..ContainerFacts::default() }
    }

    fn done(code: i32) -> ContainerFacts {
        ContainerFacts { finished: true, exit_code: Some(code), ..ContainerFacts::default() }
    }

    #[track_caller]
    fn check(facts: &[(&str, ContainerFacts)], phase: &str, ready: bool) {
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "app"}],
        }}))
        .unwrap();
        let facts = facts.iter().map(|(name, facts)| ((*name).to_owned(), facts.clone())).collect();
        let ip = IpAddr::from([10, 1, 0, 2]);
        pod.status = Some(status(&pod, &facts, &[ip], ip));
        assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some(phase));
        assert_eq!(is_ready(&pod), ready);
    }
}
