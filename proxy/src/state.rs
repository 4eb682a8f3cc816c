//! `/state.json`: what this proxy knows. Nothing secret is in it: no keys, no tokens, no request data.

use crate::{
    Proxy, Worker,
    discover::{
        Absence, Known, Profiled,
        target::{Plan, PlanProtocol, Split, Target},
    },
    endpoint::{self, LiveEndpoint},
};
use remora_core::{
    breaker::Gate,
    endpoint::DialPlan,
    policy::{ResourceRef, ServerPolicy, ServerProtocol},
};
use remora_runtime::{clock, tls::Credentials};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Everything, as JSON.
pub fn state(proxy: &Proxy, workers: &[Arc<Worker>]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "identity": identity(proxy),
        "draining": proxy.drain.is_draining(),
        "connections": {
            "inbound": proxy.config.limits.max_connections - proxy.inbound_permits.available_permits(),
            "outbound": proxy.config.limits.max_connections - proxy.outbound_permits.available_permits(),
            "speculative": proxy.config.limits.max_speculative - proxy.speculative_permits.available_permits(),
            "upgraded": proxy.metrics.upgraded.get(),
            "inboundByProtocol": proxy.metrics.inbound.open().collect::<BTreeMap<_, _>>(),
            "outboundByProtocol": proxy.metrics.outbound.open().collect::<BTreeMap<_, _>>(),
        },
        "tasks": proxy.tasks.live(),
        "inbound": {
            "policies": policies(proxy),
            "profiles": proxy.discovery.names.snapshot().into_iter()
                .map(|(name, known)| (name.to_string(), describe(&known, |named| profile(&named.known))))
                .collect::<BTreeMap<_, _>>(),
        },
        "outbound": {
            "profiles": proxy.discovery.profiles.snapshot().into_iter()
                .map(|(place, known)| (place.to_string(), describe(&known, profile)))
                .collect::<BTreeMap<_, _>>(),
            "policies": proxy.discovery.policies.snapshot().into_iter()
                .map(|(place, known)| (place.to_string(), describe(&known, |policy| json!({
                    "parent": resource(&policy.policy.parent), "notApplied": policy.ignored,
                    "podOf": policy.services.iter().map(|one| &*one.service).collect::<Vec<_>>(),
                })))).collect::<BTreeMap<_, _>>(),
            "workers": workers.iter().map(|worker| targets(worker)).collect::<Vec<_>>(),
        },
    })
}

fn identity(proxy: &Proxy) -> Value {
    let current = proxy.credentials.borrow();
    let credentials: Option<&Arc<Credentials>> = current.as_ref();
    json!({
        "name": proxy.server_name(),
        "certified": credentials.is_some(),
        "serial": credentials.map(|credentials| credentials.serial()),
        "notAfter": credentials.map(|credentials| credentials.expires().0.as_secs()),
        "secondsLeft": credentials.map(|credentials| credentials.expires().since(clock::unix_now()).as_secs()),
    })
}

fn policies(proxy: &Proxy) -> BTreeMap<u16, Value> {
    let known = proxy.policies.snapshot().into_iter();
    known
        .map(|(port, known)| {
            let mut described = policy(&proxy.policies.in_force(port, &known));
            if let Value::Object(fields) = &mut described {
                match &known {
                    Known::Is(server) => fields.insert("notApplied".into(), json!(server.ignored)),
                    // The default holds.
                    Known::Pending | Known::Absent(_) => {
                        fields.insert("controller".into(), describe(&known, |_| Value::Null))
                    }
                };
            }
            (port, described)
        })
        .collect()
}

fn policy(server: &ServerPolicy) -> Value {
    let protocol = match &server.protocol {
        ServerProtocol::Detect { .. } => "detect",
        ServerProtocol::Http1 { .. } => "http/1",
        ServerProtocol::Http2 { .. } => "http/2",
        ServerProtocol::Grpc { .. } => "grpc",
        ServerProtocol::Opaque => "opaque",
        ServerProtocol::Tls => "tls",
        ServerProtocol::Invalid(reason) => {
            return json!({ "server": resource(&server.meta), "invalid": reason });
        }
    };
    let routes = remora_core::policy::routes(server);
    json!({
        "server": resource(&server.meta),
        "protocol": protocol,
        "authorizations": server.authorizations.iter().map(|one| resource(&one.meta)).collect::<Vec<_>>(),
        "routes": routes.iter().map(|one| resource(&one.route.meta)).collect::<Vec<_>>(),
        "rateLimit": server.rate_limits.as_ref().map(|limits| json!({
            "policy": resource(&limits.meta),
            "total": limits.total.map(|quota| quota.burst),
            "identity": limits.identity.map(|quota| quota.burst),
            "overrides": limits.overrides.iter().map(|one| json!({
                "requestsPerSecond": one.quota.burst, "clients": one.identities.len(),
            })).collect::<Vec<_>>(),
        })),
    })
}

fn profile(known: &Profiled) -> Value {
    let Profiled { profile, ignored, refused } = known;
    let routes = profile.routes.iter().map(|route| {
        json!({
            "name": route.name(),
            "retryable": route.retryable,
            "timeoutMs": route.timeout.map(|timeout| timeout.as_millis() as u64),
            "responseClasses": route.classes.len(),
        })
    });
    let overrides = profile.overrides.iter().map(|dst| (dst.authority.to_string(), dst.weight));
    json!({
        "name": profile.name,
        "opaque": profile.opaque,
        "routes": routes.collect::<Vec<_>>(),
        "dstOverrides": overrides.collect::<BTreeMap<_, _>>(),
        "retryBudget": profile.budget.map(|budget| json!({
            "retryRatio": budget.ratio(), "minRetriesPerSecond": budget.min_per_second(),
            "ttlMs": budget.ttl().as_millis() as u64,
        })),
        "notApplied": ignored,
        "refused": refused,
    })
}

fn targets(worker: &Worker) -> BTreeMap<String, Value> {
    worker.targets.all().iter().map(|one| (one.place.to_string(), target(one))).collect()
}

fn target(target: &Target) -> Value {
    match target.known() {
        None => json!({ "waiting": true }),
        Some(plan) => json!({
            "parent": resource(&plan.parent),
            "protocol": protocol(&plan),
            "routedBy": if plan.profile.is_some() { "ServiceProfile" } else { "policy" },
            "speculation": target.may_speculate(),
            "strategy": strategies(&plan),
            "backends": backends(&plan),
        }),
    }
}

fn protocol(plan: &Plan) -> Value {
    match &plan.protocol {
        PlanProtocol::Detect { .. } => json!("detect"),
        PlanProtocol::Http1(_) => json!("http/1"),
        PlanProtocol::Http2(_) => json!("http/2"),
        PlanProtocol::Opaque(_) => json!("opaque"),
        PlanProtocol::Tls(_) => json!("tls"),
        PlanProtocol::Invalid(reason) => json!({ "invalid": reason }),
    }
}

/// By what a target's endpoints are told apart, where it is one strategy for all of its backends; else by backend.
fn strategies(plan: &Plan) -> Value {
    let found: BTreeMap<_, _> = splits(plan)
        .into_iter()
        .flat_map(Split::backends)
        .map(|backend| (backend.balancer.name().to_string(), backend.balancer.strategy().as_str()))
        .collect();
    let mut each = found.values();
    match each.next() {
        Some(first) if each.all(|other| other == first) => json!(first),
        Some(_) => json!(found),
        None => Value::Null,
    }
}

fn splits(plan: &Plan) -> Vec<&Split> {
    let by_profile = plan.profile.iter().flat_map(|profile| [&*profile.http1, &*profile.http2]);
    let mut splits: Vec<&Split> = by_profile.collect();
    match &plan.protocol {
        PlanProtocol::Detect { http1, http2, opaque } => {
            for routes in [http1, http2] {
                splits.extend(routes.rules.iter().flatten().map(|rule| &*rule.split));
            }
            splits.push(opaque);
        }
        PlanProtocol::Http1(routes) | PlanProtocol::Http2(routes) => {
            splits.extend(routes.rules.iter().flatten().map(|rule| &*rule.split));
        }
        PlanProtocol::Opaque(split) => splits.push(split),
        PlanProtocol::Tls(plans) => splits.extend(plans.iter().map(|plan| &*plan.split)),
        PlanProtocol::Invalid(_) => {}
    }
    splits
}

fn backends(plan: &Plan) -> BTreeMap<String, Value> {
    let backends = splits(plan).into_iter().flat_map(Split::backends);
    let mut shown = BTreeMap::new();
    for backend in backends {
        // Requests and bytes may have a balancer each: the first one is that of requests.
        shown.entry(backend.balancer.name().to_string()).or_insert_with(|| {
            let endpoints = backend.balancer.endpoints();
            json!(endpoints.iter().map(|one| live(one)).collect::<Vec<_>>())
        });
    }
    shown
}

fn live(live: &LiveEndpoint) -> Value {
    let how = match live.plan() {
        DialPlan::Plain { reason, .. } => json!({ "plain": reason.as_str() }),
        DialPlan::Transparent { .. } => json!("tls"),
        DialPlan::Direct { .. } => json!("tls+header"),
    };
    let now = clock::now();
    json!({
        "addr": live.endpoint().addr.to_string(),
        "how": how,
        "identity": endpoint::identity(live.plan()).map(|tls| tls.identity.as_str()),
        "forbidden": live.forbidden().map(ToString::to_string),
        "weight": live.endpoint().weight,
        "remote": live.endpoint().remote,
        "load": live.load(now),
        "inFlight": live.in_flight(),
        "reachable": live.refusal(now).is_none(),
        "breaker": live.breaker().map(|breaker| gate(breaker.gate(now))),
        "idleHttp1": live.client().idle(),
    })
}

fn gate(gate: Gate) -> Value {
    match gate {
        Gate::Open => json!("open"),
        Gate::Shut(left) => json!({ "shutForMs": left.as_millis() as u64 }),
        Gate::Probation => json!("probation"),
        Gate::Probing => json!("probing"),
    }
}

fn describe<T>(known: &Known<T>, of: impl FnOnce(&T) -> Value) -> Value {
    match known {
        Known::Pending => json!({ "waiting": true }),
        Known::Is(value) => of(value),
        Known::Absent(Absence::NotFound) => json!({ "absent": "not found" }),
        Known::Absent(Absence::Refused(reason)) => json!({ "absent": reason }),
    }
}

fn resource(resource: &ResourceRef) -> Value {
    json!({
        "group": resource.group, "kind": resource.kind, "name": resource.name, "namespace": resource.namespace,
        "port": resource.port,
    })
}
