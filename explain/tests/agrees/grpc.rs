//! GRPCRoutes: drawn, written as YAML, and read naively as Gateway API orders them.

use crate::draw::Dice;

type Pair = (&'static str, &'static str);

/// The GRPCRoutes of a Service.
#[derive(Debug)]
pub(crate) struct Routes(Vec<Route>);

#[derive(Debug)]
struct Route {
    name: String,
    created: Option<u32>,
    host: Option<&'static str>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    matches: Vec<Match>,
    /// One of [`BACKENDS`].
    backend: &'static str,
}

#[derive(Debug)]
struct Match {
    service: Option<&'static str>,
    method: Option<&'static str>,
    headers: Vec<Pair>,
}

/// A call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) host: &'static str,
    pub(crate) service: &'static str,
    pub(crate) method: &'static str,
    pub(crate) headers: Vec<Pair>,
}

const BACKENDS: [&str; 2] = ["web", "v2"];
const SERVICES: [&str; 3] = ["shop.Cart", "shop.Carts", "a.B"];
const METHODS: [&str; 3] = ["Get", "List", "GetAll"];
const HEADERS: [Pair; 3] = [("x", "1"), ("x", "2"), ("y", "1")];
const HOSTS: [&str; 3] = ["web", "*.example", "a.example"];

impl Routes {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let routes = 1 + dice.below(3);
        Self((0..routes).map(|nth| Route::draw(dice, nth)).collect())
    }

    pub(crate) fn yaml(&self) -> String {
        self.0.iter().map(Route::yaml).collect()
    }

    /// The backend of a call; `None`: no rule has it.
    pub(crate) fn expected(&self, call: &Call) -> Option<&'static str> {
        let mut ordered: Vec<&Route> = self.0.iter().collect();
        ordered.sort_by_key(|route| (route.created.is_none(), route.created, route.name.clone()));
        let mut best = None;
        for route in ordered {
            // An exact host, then the longer end of one, then none.
            let Some(host) = route.host_score(call.host) else { continue };
            for rule in &route.rules {
                let everything = [Match { service: None, method: None, headers: Vec::new() }];
                let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
                for one in matches.iter().filter(|one| one.holds(call)) {
                    // Characters of the service, of the method, headers; of equals the first.
                    let length = |name: Option<&str>| name.map_or(0, str::len);
                    let score = (host, length(one.service), length(one.method), one.headers.len());
                    if best.is_none_or(|(earlier, _)| earlier < score) {
                        best = Some((score, rule.backend));
                    }
                }
            }
        }
        best.map(|(_, backend)| backend)
    }
}

impl Route {
    fn draw(dice: &mut Dice, nth: usize) -> Self {
        let rules = 1 + dice.below(3);
        Self {
            name: format!("g{nth}"),
            created: dice.rarely(2).then(|| if dice.rarely(2) { 2024 } else { 2025 }),
            host: dice.rarely(4).then(|| dice.one(&HOSTS)),
            rules: (0..rules).map(|_| Rule::draw(dice)).collect(),
        }
    }

    fn host_score(&self, asked: &str) -> Option<(bool, usize)> {
        match self.host {
            None => Some((false, 0)),
            Some(host) => match host.strip_prefix('*') {
                Some(end) => asked.ends_with(end).then_some((false, end.len())),
                None => (asked == host).then_some((true, 0)),
            },
        }
    }

    fn yaml(&self) -> String {
        let created = self.created.map(|year| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'"));
        let host = self.host.map(|host| format!(", hostnames: ['{host}']"));
        let rules: Vec<String> = self.rules.iter().map(Rule::yaml).collect();
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {{name: {}, namespace: shop{}}}, spec: \
             {{parentRefs: [{{group: core, kind: Service, name: web}}]{}, rules: [{}]}}}}\n---\n",
            self.name,
            created.unwrap_or_default(),
            host.unwrap_or_default(),
            rules.join(", ")
        )
    }
}

impl Rule {
    fn draw(dice: &mut Dice) -> Self {
        let matches = dice.below(3);
        Self { matches: (0..matches).map(|_| Match::draw(dice)).collect(), backend: dice.one(&BACKENDS) }
    }

    fn yaml(&self) -> String {
        let backend = format!("backendRefs: [{{name: {}, port: 8080}}]", self.backend);
        if self.matches.is_empty() {
            return format!("{{{backend}}}");
        }
        let matches: Vec<String> = self.matches.iter().map(Match::yaml).collect();
        format!("{{matches: [{}], {backend}}}", matches.join(", "))
    }
}

impl Match {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            service: dice.rarely(2).then(|| dice.one(&SERVICES)),
            method: dice.rarely(2).then(|| dice.one(&METHODS)),
            headers: if dice.rarely(4) { vec![dice.one(&HEADERS)] } else { Vec::new() },
        }
    }

    fn holds(&self, call: &Call) -> bool {
        self.service.is_none_or(|service| service == call.service)
            && self.method.is_none_or(|method| method == call.method)
            && self.headers.iter().all(|header| call.headers.contains(header))
    }

    fn yaml(&self) -> String {
        let mut fields = Vec::new();
        if self.service.is_some() || self.method.is_some() {
            let service = self.service.map(|service| format!("service: {service}"));
            let method = self.method.map(|method| format!("method: {method}"));
            let names: Vec<String> = service.into_iter().chain(method).collect();
            fields.push(format!("method: {{{}}}", names.join(", ")));
        }
        let header = |(name, value): &Pair| format!("headers: [{{name: {name}, value: '{value}'}}]");
        fields.extend(self.headers.first().map(header));
        format!("{{{}}}", fields.join(", "))
    }
}

impl Call {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        Self {
            host: dice.one(&["web", "web", "a.example", "b.a.example", "other"]),
            service: dice.one(&SERVICES),
            method: dice.one(&METHODS),
            headers: if dice.rarely(2) { vec![dice.one(&HEADERS)] } else { Vec::new() },
        }
    }
}
