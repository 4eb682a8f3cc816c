//! What holds whatever happens, in whatever order.

use super::*;
use crate::{
    resources::{Document, parse},
    view::{
        Context, Lens, Outbound, Profile, Target, Workload, endpoints, inbound, outbound, policy_reports,
        profile, route_reports, settings_for_tests,
    },
};
use proptest::{prelude::*, sample::subsequence};

/// A few objects that concern each other in every way that the index knows, each in a few states.
fn object(which: usize, state: usize) -> Resource {
    let ready = if state.is_multiple_of(2) { "True" } else { "False" };
    let label = if state < 2 { "web" } else { "other" };
    let text = match which {
        0 => format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a, annotations: {{config.linkerd.io/opaque-ports: '{}'}}}}}}",
            80 + state
        ),
        1 => format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n, labels: {{topology.kubernetes.io/zone: z{state}}}}}}}"
        ),
        2 => format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web-1, namespace: a, ownerReferences: [{{apiVersion: v1, kind: Deployment, name: d{state}, uid: u}}]}}, spec: {{selector: {{}}}}}}"
        ),
        3 | 4 => format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{which}, namespace: a, labels: {{app: {label}}}, ownerReferences: [{{apiVersion: v1, kind: ReplicaSet, name: web-1, uid: u}}]}}, spec: {{nodeName: n, containers: []}}, status: {{podIP: 10.1.0.{}, conditions: [{{type: Ready, status: '{ready}'}}]}}}}",
            if state == 3 { 3 } else { which }
        ),
        5 | 6 => format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{which}, namespace: a, annotations: {{retry.linkerd.io/limit: '{}'}}}}, spec: {{clusterIP: 10.96.0.{}, selector: {{app: {label}}}, ports: [{{port: 80}}]}}}}",
            state / 2,
            if state == 3 { 5 } else { which }
        ),
        9 => format!(
            "{{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {{name: g, namespace: a}}, spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {}}}], to: [{{group: '', kind: Service, name: s{}}}]}}}}",
            if state < 2 { "b" } else { "c" },
            5 + state % 2
        ),
        10 | 11 => format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: {}}}, spec: {{parentRefs: [{{group: core, kind: Service, namespace: a, name: s{}}}], rules: [{{backendRefs: [{{name: s{}, namespace: a, port: 80}}]}}]}}}}",
            if which == 10 { "a" } else { "b" },
            5 + state % 2,
            6 - state / 2
        ),
        12 => format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {{name: r, namespace: a}}, spec: {{parentRefs: [{{group: core, kind: Service, name: s{}, port: 8{}}}]}}}}",
            5 + state % 2,
            state / 2
        ),
        7 | 8 => format!(
            "{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: s5.a.svc.cluster.local, namespace: {}}}, spec: {{routes: [{{name: r{state}, condition: {{method: GET}}}}]}}}}",
            if which == 7 { "a" } else { "b" }
        ),
        14..=22 => policy(which, state),
        _ => format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: e, namespace: a, labels: {{kubernetes.io/service-name: s{}}}}}, addressType: IPv4, ports: [{{port: 80}}], endpoints: [{{addresses: [10.1.0.3], targetRef: {{kind: Pod, name: p3}}}}, {{addresses: [10.1.0.4]}}]}}",
            5 + state % 2
        ),
    };
    match parse(&text).unwrap_or_else(|errors| panic!("{errors:?} in {text}")).remove(0) {
        Document::Known(resource) => resource,
        Document::Unread(what) => panic!("{what} is not read"),
    }
}

/// The policy resources among them.
fn policy(which: usize, state: usize) -> String {
    let label = if state < 2 { "web" } else { "other" };
    match which {
        14 | 15 => format!(
            "{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: v{which}, namespace: a, labels: {{app: {label}}}}}, spec: {{podSelector: {{matchLabels: {{app: {label}}}}}, port: 80, proxyProtocol: {}, accessPolicy: {}}}}}",
            if state.is_multiple_of(2) { "HTTP/1" } else { "opaque" },
            if which == 14 { "audit" } else { "deny" }
        ),
        16 => format!(
            "{{apiVersion: policy.linkerd.io/v1beta1, kind: ServerAuthorization, metadata: {{name: s, namespace: a}}, spec: {{server: {}, client: {{unauthenticated: true}}}}}}",
            if state < 2 { "{name: v14}" } else { "{selector: {matchLabels: {app: web}}}" }
        ),
        17 | 18 => {
            let target = match (which, state) {
                (17, 0 | 1) => "group: policy.linkerd.io, kind: Server, name: v15",
                (17, _) => "kind: Namespace, name: a",
                _ => "group: gateway.networking.k8s.io, kind: HTTPRoute, name: t",
            };
            let refs =
                if state.is_multiple_of(2) { "MeshTLSAuthentication" } else { "NetworkAuthentication" };
            format!(
                "{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p{which}, namespace: a}}, spec: {{targetRef: {{{target}}}, requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: {refs}, name: n, namespace: b}}]}}}}"
            )
        }
        19 => format!(
            "{{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {{name: n, namespace: b}}, spec: {{identities: [a{state}.example]}}}}"
        ),
        20 => format!(
            "{{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {{name: n, namespace: b}}, spec: {{networks: [{{cidr: 10.{state}.0.0/16}}]}}}}"
        ),
        21 => format!(
            "{{apiVersion: policy.linkerd.io/v1alpha1, kind: HTTPLocalRateLimitPolicy, metadata: {{name: l, namespace: a}}, spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: v{}}}, total: {{requestsPerSecond: {}}}}}}}",
            14 + state % 2,
            1 + state
        ),
        _ => format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: t, namespace: a}}, spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: v{}}}], rules: [{{matches: [{{path: {{value: /{}}}}}]}}]}}}}",
            14 + state % 2,
            state / 2
        ),
    }
}

const OBJECTS: usize = 23;

fn any_event() -> impl Strategy<Value = Event> {
    let of_kind = |which: usize| {
        let kind = object(which, 0).kind();
        (0..OBJECTS).filter(move |other| object(*other, 0).kind() == kind).collect::<Vec<_>>()
    };
    prop_oneof![
        4 => (0..OBJECTS, 0..4_usize).prop_map(|(which, state)| Event::Apply(object(which, state))),
        2 => (0..OBJECTS).prop_map(|which| Event::Delete(object(which, 0).object_ref())),
        1 => (0..OBJECTS, 0..4_usize).prop_flat_map(move |(which, state)| {
            let all = of_kind(which);
            let kind = object(which, 0).kind();
            subsequence(all.clone(), 0..=all.len())
                .prop_map(move |some| Event::Reset(kind, some.iter().map(|which| object(*which, state)).collect()))
        }),
    ]
}

/// Every question that could be asked about these objects.
#[derive(Clone, Copy, Debug)]
enum Question {
    Endpoints(usize),
    Profile(u8, u8),
    ProfileFromB(u8, u8),
    Outbound(u8, u8),
    OutboundFromB(u8, u8),
    Inbound(usize),
}

const QUESTIONS: [Question; 15] = [
    Question::Endpoints(5),
    Question::Endpoints(6),
    Question::Profile(1, 3),
    Question::Profile(1, 4),
    Question::Profile(96, 5),
    Question::Profile(96, 6),
    Question::ProfileFromB(96, 5),
    Question::Outbound(1, 3),
    Question::Outbound(96, 5),
    Question::Outbound(96, 6),
    Question::OutboundFromB(96, 5),
    Question::OutboundFromB(96, 6),
    Question::Inbound(3),
    Question::Inbound(4),
    Question::Inbound(5),
];

/// An answer and its keys.
fn ask(index: &Index, question: Question) -> (String, BTreeSet<Key>) {
    let settings = settings_for_tests();
    let mut lens = Lens::new(index);
    let addr = |a, b| Target::Addr(([10, a, 0, b], 80).into());
    let answer = match question {
        Question::Endpoints(service) => {
            let context = Context { node: Some("n".to_owned()), ..Context::default() };
            let name = Name::new("a", format!("s{service}"));
            format!("{:?}", endpoints(&mut lens, &settings, (&name, None, 80), &context))
        }
        Question::Profile(a, b) => {
            let seen: Result<Profile, _> = profile(&mut lens, &settings, &addr(a, b), &Context::default());
            format!("{seen:?}")
        }
        Question::ProfileFromB(a, b) => {
            let context = Context { namespace: Some("b".to_owned()), ..Context::default() };
            format!("{:?}", profile(&mut lens, &settings, &addr(a, b), &context))
        }
        Question::Outbound(a, b) => {
            let seen: Result<Outbound, _> = outbound(&mut lens, &settings, &addr(a, b), None);
            format!("{seen:?}")
        }
        Question::OutboundFromB(a, b) => {
            format!("{:?}", outbound(&mut lens, &settings, &addr(a, b), Some("b")))
        }
        Question::Inbound(pod) => {
            let workload = Workload(Name::new("a", format!("p{pod}")));
            format!("{:?}", inbound(&mut lens, &settings, &workload, 80))
        }
    };
    (answer, lens.into_keys())
}

/// How the routes stand, in words.
fn statuses(index: &Index) -> String {
    let settings = settings_for_tests();
    let routes: Vec<_> = route_reports(index, &settings).collect();
    format!("{routes:?} {:?}", policy_reports(index, &settings))
}

proptest! {
    #[test]
    fn the_order_of_different_objects_does_not_matter(
        states in proptest::collection::vec(0..4_usize, OBJECTS),
        order in Just((0..OBJECTS).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let (mut straight, mut shuffled) = (Index::default(), Index::default());
        for (which, state) in states.iter().enumerate() {
            straight.apply(Event::Apply(object(which, *state)));
        }
        for which in order {
            shuffled.apply(Event::Apply(object(which, states[which])));
        }
        prop_assert_eq!(statuses(&straight), statuses(&shuffled));
        for question in QUESTIONS {
            prop_assert_eq!(ask(&straight, question).0, ask(&shuffled, question).0);
        }
        prop_assert_eq!(straight, shuffled);
    }

    #[test]
    fn what_is_already_known_changes_nothing(events in proptest::collection::vec(any_event(), 1..12)) {
        let mut index = Index::default();
        for event in events {
            index.apply(event.clone());
            prop_assert_eq!(index.apply(event), Changes::default());
        }
    }

    #[test]
    fn no_answer_changes_without_one_of_its_keys_being_reported(
        events in proptest::collection::vec(any_event(), 1..12),
    ) {
        let mut index = Index::default();
        for event in events {
            let before: Vec<_> = QUESTIONS.iter().map(|question| ask(&index, *question)).collect();
            let changes = index.apply(event.clone());
            for (question, (answer, keys)) in QUESTIONS.iter().zip(before) {
                let told = keys.intersection(&changes.keys).next().is_some();
                let (now, _) = ask(&index, *question);
                prop_assert!(told || now == answer, "{question:?} after {event:?}: {answer} became {now}, keys {keys:?}");
            }
        }
    }

    #[test]
    fn a_reset_equals_its_deletes_and_applies(
        before in proptest::collection::vec(any_event(), 0..12),
        states in proptest::collection::vec(proptest::option::of(0..4_usize), OBJECTS),
        which in 0..OBJECTS,
    ) {
        let (mut reset, mut stepwise) = (Index::default(), Index::default());
        for event in before {
            reset.apply(event.clone());
            stepwise.apply(event);
        }
        let kind = object(which, 0).kind();
        let of_kind: Vec<_> = (0..OBJECTS).filter(|which| object(*which, 0).kind() == kind).collect();
        let kept: Vec<_> = of_kind.iter().filter_map(|which| Some(object(*which, states[*which]?))).collect();
        let mut keys = BTreeSet::new();
        for which in &of_kind {
            let event = match states[*which] {
                Some(state) => Event::Apply(object(*which, state)),
                None => Event::Delete(object(*which, 0).object_ref()),
            };
            keys.extend(stepwise.apply(event).keys);
        }
        prop_assert_eq!(reset.apply(Event::Reset(kind, kept)).keys, keys);
        prop_assert_eq!(reset, stepwise);
    }

    #[test]
    fn nothing_is_left_when_everything_is_deleted(events in proptest::collection::vec(any_event(), 0..12)) {
        let mut index = Index::default();
        for event in events {
            index.apply(event);
        }
        for kind in Kind::ALL {
            index.apply(Event::Reset(kind, Vec::new()));
        }
        prop_assert_eq!(index, Index::default());
    }
}

#[test]
fn mistakes_in_annotations_are_complained_about_once() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a, labels: {linkerd.io/control-plane-ns: remora}, annotations: {config.linkerd.io/opaque-ports: '80,x', config.linkerd.io/default-inbound-policy: perhaps}}, spec: {containers: []}}";
    let Document::Known(pod) = parse(pod).unwrap().remove(0) else { panic!("no pod") };
    let mut index = Index::default();
    let complaints = index.apply(Event::Apply(pod.clone())).complaints;
    let words: Vec<_> =
        complaints.iter().map(|complaint| format!("{}: {}", complaint.object, complaint.reason)).collect();
    assert_eq!(words.len(), 3, "{words:#?}");
    for part in ["\"x\" is no port", "\"perhaps\" is not one of", "no container named linkerd-proxy"] {
        assert!(
            words.iter().any(|word| word.starts_with("Pod a/p: ") && word.contains(part)),
            "{part}: {words:#?}"
        );
    }
    assert_eq!(index.apply(Event::Apply(pod)), Changes::default());
}

#[test]
fn an_address_belongs_to_the_newest_pod_and_the_oldest_service() {
    let created = |kind: &str, name: &str, when: &str, rest: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: {kind}, metadata: {{name: {name}, namespace: a, creationTimestamp: '{when}'}}, {rest}}}"
        );
        match parse(&text).unwrap().remove(0) {
            Document::Known(resource) => Event::Apply(resource),
            Document::Unread(what) => panic!("{what}"),
        }
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let pod = |status: &str| format!("spec: {{containers: []}}, status: {{podIP: 10.1.0.1, {status}}}");
    let service = "spec: {clusterIP: 10.96.0.1}";
    let mut index = Index::default();
    index.apply(created("Pod", "old", old, &pod("phase: Running")));
    index.apply(created("Pod", "new", new, &pod("phase: Running")));
    index.apply(created("Pod", "ended", "2026-03-01T00:00:00Z", &pod("phase: Succeeded")));
    index.apply(created("Service", "new", new, service));
    index.apply(created("Service", "old", old, service));
    let ip = |text: &str| text.parse().unwrap();
    assert_eq!(index.pod_at(ip("10.1.0.1")).unwrap().0.name, "new");
    assert_eq!(index.service_at(ip("10.96.0.1")).unwrap().0.name, "old");
}
