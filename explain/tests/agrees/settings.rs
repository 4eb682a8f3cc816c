//! The settings of a control plane without flags, for all of this crate's tests.

use remora_core::policy::DefaultPolicy;
use remora_destination::view::{Settings, TransportMode};

pub(crate) fn settings() -> Settings {
    let networks = |text: &str| text.split(',').map(|net| net.parse().unwrap()).collect();
    Settings {
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "remora".to_owned(),
        cluster_networks: networks("10.0.0.0/8,fd00::/8"),
        probe_networks: networks("0.0.0.0/0,::/0"),
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        default_opaque_ports: [5432].into_iter().collect(),
        transport_mode: TransportMode::TransportHeader,
        h2_upgrade: true,
        heed_request_headers: false,
    }
}
