//! ServiceProfiles of Services of `shop`: drawn, written as YAML, and read naively as `docs/profiles.md` states them.

use super::{
    Dice, document,
    pods::{MIXED, OUTER},
};

#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) namespace: &'static str,
    /// Of shop.
    pub(crate) service: &'static str,
    conditions: Vec<Condition>,
    /// Service of shop, thousandths.
    pub(crate) overrides: Vec<(&'static str, u32)>,
}

#[derive(Debug)]
enum Condition {
    Method(&'static str),
    Path(&'static str),
    Both(&'static str, &'static str),
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
}

const METHODS: [&str; 2] = ["GET", "POST"];
const PATHS: [&str; 4] = ["/a", "/a/.*", "/[ab]", "/.*secret.*"];

impl Profile {
    /// One that says something: it comes before routes.
    pub(crate) fn draw(dice: &mut Dice, namespace: &'static str, service: &'static str) -> Self {
        let overrides: Vec<(&str, u32)> = dice.some(2, |dice| {
            (dice.one(&["web", "v2", "none", "plain", MIXED, OUTER]), dice.one(&[0, 500, 1000, 3000]))
        });
        let least = usize::from(overrides.iter().all(|(_, weight)| *weight == 0));
        let routes = least + dice.below(3);
        Self {
            namespace,
            service,
            conditions: (0..routes).map(|_| Condition::draw(dice, 2)).collect(),
            overrides,
        }
    }

    /// The number of the first route that matches. `like`: whether a pattern covers the whole path.
    pub(crate) fn route(&self, method: &str, like: &dyn Fn(&str) -> bool) -> Option<usize> {
        self.conditions.iter().position(|condition| condition.holds(method, like))
    }

    pub(crate) fn yaml(&self) -> String {
        let route = |(nth, condition): (usize, &Condition)| {
            format!("{{name: n{nth}, condition: {}}}", condition.yaml())
        };
        let routes: Vec<String> = self.conditions.iter().enumerate().map(route).collect();
        let to = |(service, weight): &(&str, u32)| {
            let weight = match weight {
                500 => "500m".to_owned(),
                weight => format!("'{}'", weight / 1000),
            };
            format!("{{authority: '{service}.shop.svc.cluster.local:8080', weight: {weight}}}")
        };
        let overrides: Vec<String> = self.overrides.iter().map(to).collect();
        document(&format!(
            "apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: {}.shop.svc.cluster.local, namespace: {}}}, \
             spec: {{routes: [{}], dstOverrides: [{}]}}",
            self.service,
            self.namespace,
            routes.join(", "),
            overrides.join(", ")
        ))
    }
}

impl Condition {
    fn draw(dice: &mut Dice, depth: usize) -> Self {
        let two = |dice: &mut Dice| vec![Self::draw(dice, depth - 1), Self::draw(dice, depth - 1)];
        match dice.below(if depth == 0 { 3 } else { 6 }) {
            0 => Self::Method(dice.one(&METHODS)),
            1 => Self::Path(dice.one(&PATHS)),
            2 => Self::Both(dice.one(&METHODS), dice.one(&PATHS)),
            3 => Self::All(two(dice)),
            4 => Self::Any(two(dice)),
            _ => Self::Not(Box::new(Self::draw(dice, depth - 1))),
        }
    }

    fn holds(&self, method: &str, like: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Method(wanted) => *wanted == method,
            Self::Path(pattern) => like(pattern),
            Self::Both(wanted, pattern) => *wanted == method && like(pattern),
            Self::All(all) => all.iter().all(|one| one.holds(method, like)),
            Self::Any(any) => any.iter().any(|one| one.holds(method, like)),
            Self::Not(not) => !not.holds(method, like),
        }
    }

    fn yaml(&self) -> String {
        let list = |all: &[Self]| all.iter().map(Self::yaml).collect::<Vec<_>>().join(", ");
        match self {
            Self::Method(method) => format!("{{method: {method}}}"),
            Self::Path(path) => format!("{{pathRegex: '{path}'}}"),
            Self::Both(method, path) => format!("{{method: {method}, pathRegex: '{path}'}}"),
            Self::All(all) => format!("{{all: [{}]}}", list(all)),
            Self::Any(any) => format!("{{any: [{}]}}", list(any)),
            Self::Not(not) => format!("{{not: {}}}", not.yaml()),
        }
    }
}
