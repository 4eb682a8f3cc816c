//! ServiceProfiles as requests meet them: which route has a request, what its response counts as, and where it is
//! counted. Handles are resolved when a profile arrives. Contract 4.1, 4.4, 5.4.

use crate::{
    Proxy,
    discover::{Known, Profiled, Watch},
    fault::Fault,
    http::{
        exchange::{Class, GrpcStatus},
        headers::DST_CANONICAL,
        view::View,
    },
    metrics::profiles::{Direction, ProfileFamilies, ProfileSeries, Retryable},
};
use http::Request;
use remora_core::{
    profile::{self, BudgetLimits, Profile, ResponseClass, RetryBudget},
    retry::{Attempt, Decision, Reason},
    route::RequestView,
    time::Time,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

/// The routes of a profile, and one more for what none of them has.
pub struct Rules {
    profile: Arc<Profile>,
    routes: Vec<Arc<Route>>,
    rest: Arc<Route>,
}

/// One route.
pub struct Route {
    pub name: Option<Arc<str>>,
    /// How long a request may take until the head of its response.
    pub timeout: Option<Duration>,
    /// Outbound, where requests that failed may be sent again.
    pub retries: Option<Retries>,
    classes: Arc<[ResponseClass]>,
    series: ProfileSeries,
}

/// The retries of one route.
pub struct Retries {
    budget: Arc<Mutex<RetryBudget>>,
    counted: Retryable,
}

impl Retries {
    /// A request came, which earns its share of a retry.
    pub fn began(&self, now: Time) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).request(now);
    }

    /// Whether a request is sent again; counted where the budget was asked.
    pub fn decide(&self, attempt: &Attempt, now: Time) -> Decision {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = attempt.decide(Some(&mut budget), now);
        drop(budget);
        match decision {
            Decision::Again(_) => self.counted.all.inc(),
            Decision::Not(Reason::NoBudget) => {
                self.counted.all.inc();
                self.counted.no_budget.inc();
            }
            Decision::Not(_) => {}
        }
        decision
    }
}

/// The budgets in use, by destination: shared by all workers, and kept while what else a profile says changes.
#[derive(Default)]
pub struct Budgets(Mutex<HashMap<Arc<str>, Weak<Mutex<RetryBudget>>>>);

impl Budgets {
    /// The budget with these limits; that of before if they did not change.
    fn of(&self, dst: &str, limits: BudgetLimits) -> Arc<Mutex<RetryBudget>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = known.get(dst).and_then(Weak::upgrade)
            && budget.lock().unwrap_or_else(PoisonError::into_inner).limits() == limits
        {
            return budget;
        }
        // What nobody uses any more is forgotten, so that there are never more than profiles.
        known.retain(|_, budget| budget.strong_count() > 0);
        let budget = Arc::new(Mutex::new(RetryBudget::new(limits)));
        known.insert(dst.into(), Arc::downgrade(&budget));
        budget
    }
}

impl Rules {
    /// `dst` is the name and port that requests go to. `budgets`: of the outbound side.
    pub fn new(
        families: &ProfileFamilies,
        budgets: Option<&Budgets>,
        profile: Arc<Profile>,
        dst: &str,
    ) -> Self {
        let direction = if budgets.is_some() { Direction::Outbound } else { Direction::Inbound };
        let budget = budgets.zip(profile.budget).map(|(budgets, limits)| budgets.of(dst, limits));
        let retries = |route: &profile::ProfileRoute| {
            let budget = budget.as_ref().filter(|_| route.retryable)?;
            Some(Retries { budget: budget.clone(), counted: families.retryable(dst, &route.labels) })
        };
        let route = |route: &profile::ProfileRoute| {
            Arc::new(Route {
                name: route.name().map(Arc::from),
                timeout: route.timeout,
                retries: retries(route),
                classes: route.classes.clone(),
                series: families.series(direction, dst, &route.labels),
            })
        };
        let series = families.series(direction, dst, &[]);
        let rest =
            Arc::new(Route { name: None, timeout: None, retries: None, classes: Arc::new([]), series });
        Self { routes: profile.routes.iter().map(route).collect(), rest, profile }
    }

    /// The route of a request.
    pub fn of<R: RequestView>(&self, request: &R) -> &Arc<Route> {
        self.profile.choose(request).and_then(|at| self.routes.get(at)).unwrap_or(&self.rest)
    }
}

impl Route {
    /// A request came.
    pub fn began(&self) {
        self.series.effective.request();
    }

    /// It is tried, for the first or another time.
    pub fn tried(&self) {
        if let Some(actual) = &self.series.actual {
            actual.request();
        }
    }

    /// A try had no response.
    pub fn try_failed(&self, fault: &Fault, latency: Duration) {
        if let Some(actual) = &self.series.actual {
            actual.failed(fault, latency);
        }
    }

    /// A try had a response that is not passed on.
    pub fn try_answered(&self, status: u16, class: Class, grpc: Option<GrpcStatus>, latency: Duration) {
        if let Some(actual) = &self.series.actual {
            actual.response(status, class, grpc, None, latency);
        }
    }

    /// Why there is no response, if none came in time.
    pub fn late(&self, limit: Duration) -> Fault {
        Fault::ResponseTimeout { route: self.name.clone().unwrap_or_default(), limit }
    }

    /// The request had no response.
    pub fn failed(&self, fault: &Fault, latency: Duration) {
        match fault {
            Fault::ResponseTimeout { .. } => self.series.effective.timed_out(latency),
            _ => self.series.effective.failed(fault, latency),
        }
    }

    /// This proxy answered in the server's place.
    pub fn answered(&self, fault: &Fault, grpc: bool, latency: Duration) {
        let said = self.class(if grpc { 200 } else { fault.answer().status.as_u16() });
        self.series.effective.failed_with(fault, grpc, said, latency);
    }

    /// What the profile says of a status; `None`: nothing.
    pub fn class(&self, status: u16) -> Option<Class> {
        profile::classify(&self.classes, status)
            .map(|failure| if failure { Class::Failure } else { Class::Success })
    }

    /// A response has ended.
    pub fn response(
        &self,
        status: u16,
        class: Class,
        grpc: Option<GrpcStatus>,
        error: Option<&'static str>,
        latency: Duration,
    ) {
        self.series.effective.response(status, class, grpc, error, latency);
        if let Some(actual) = &self.series.actual {
            actual.response(status, class, grpc, error, latency);
        }
    }
}

/// What is known of a name that inbound requests are addressed to.
pub struct Named {
    pub known: Profiled,
    /// Its routes, if it has any.
    rules: Option<Rules>,
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.known == other.known
    }
}

impl Named {
    /// `dst` is the name and port that was asked about.
    pub fn new(families: &ProfileFamilies, known: Profiled, dst: &str) -> Self {
        let profile = &known.profile;
        // The name as the control plane has it, with the port as the client has it: one Service, one series.
        let port = dst.rsplit_once(':').map_or("", |(_, port)| port);
        let rules = profile
            .name
            .as_ref()
            .filter(|_| !profile.routes.is_empty())
            .map(|name| Rules::new(families, None, profile.clone(), &format!("{name}:{port}")));
        Self { known, rules }
    }
}

/// Names looked up at once for all inbound connections. Clients choose them; a pod is behind a few Services.
pub const MAX_NAMES: usize = 256;
/// Names remembered per connection.
const KEPT_NAMES: usize = 8;
/// How long the first request to a name waits for its profile; then it goes on without. As Linkerd's proxy.
const FIRST_ANSWER: Duration = Duration::from_millis(100);

/// The names that the requests of one inbound connection are addressed to, as they are written, and what is known of
/// those that may have a profile.
#[derive(Default)]
pub struct Names(Mutex<Vec<Kept>>);

/// A name as it is written; `None` where it has no profile.
struct Kept(Box<str>, Option<Watch<Named>>);

impl Names {
    /// The route of an inbound request by the profile of the Service that it is addressed to.
    pub async fn route<B>(&self, proxy: &Proxy, request: &Request<B>) -> Option<Arc<Route>> {
        let view = View(request);
        let addressed = addressed(request).unwrap_or_else(|| view.authority());
        let (mut watch, first) = self.watch(proxy, addressed)?;
        if first {
            // Boxed: hardly any request waits. Expiry is no error.
            let _ = Box::pin(tokio::time::timeout(FIRST_ANSWER, watch.known())).await;
        }
        match watch.peek() {
            Known::Is(named) => named.rules.as_ref().map(|rules| rules.of(&view).clone()),
            Known::Pending | Known::Absent(_) => None,
        }
    }

    /// What is known of a name, and whether it was never asked about before.
    fn watch(&self, proxy: &Proxy, addressed: &str) -> Option<(Watch<Named>, bool)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Kept(_, watch)) = known.iter().find(|Kept(name, _)| **name == *addressed) {
            return watch.clone().map(|watch| (watch, false));
        }
        let name = lookup_name(addressed, &proxy.config.discovery.profile_suffixes);
        let found = name.and_then(|name| {
            let joined = proxy.discovery.names.join(&name);
            joined.inspect_err(|_| proxy.metrics.names_refused.inc()).ok()
        });
        if known.len() >= KEPT_NAMES {
            known.clear();
        }
        known.push(Kept(addressed.into(), found.as_ref().map(|(watch, _)| watch.clone())));
        found
    }
}

/// What the client's proxy says the request is addressed to.
fn addressed<B>(request: &Request<B>) -> Option<&str> {
    request.headers().get(DST_CANONICAL)?.to_str().ok()
}

/// `name:port` of an authority under which a Service may be known; port 80 where none is written. Addresses have no
/// profile, and only names under one of the suffixes are asked about.
pub fn lookup_name(authority: &str, suffixes: &[String]) -> Option<Arc<str>> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0)?),
        None => (authority, 80),
    };
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name =
        (1..=253).contains(&host.len()) && host.bytes().all(named) && host.parse::<IpAddr>().is_err();
    let under = |suffix: &String| {
        let before = host.strip_suffix(suffix.as_str());
        suffix.is_empty() || before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    (is_name && suffixes.iter().any(under)).then(|| format!("{host}:{port}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_while_it_is_used_and_does_not_change() {
        let (budgets, other) = (Budgets::default(), BudgetLimits::new(0.0, 1, Duration::from_secs(1)));
        let first = budgets.of("web:80", BudgetLimits::DEFAULT);
        assert!(Arc::ptr_eq(&first, &budgets.of("web:80", BudgetLimits::DEFAULT)));
        assert!(!Arc::ptr_eq(&first, &budgets.of("api:80", BudgetLimits::DEFAULT)));
        let changed = budgets.of("web:80", other.unwrap());
        assert!(!Arc::ptr_eq(&first, &changed));
        assert_eq!(budgets.0.lock().unwrap().len(), 1, "what nobody uses is forgotten");
    }

    #[test]
    fn which_names_are_looked_up() {
        for (authority, expected) in [
            ("web.shop.svc.cluster.local:8000", Some("web.shop.svc.cluster.local:8000")),
            ("Web.Shop.svc.cluster.local.:8000", Some("web.shop.svc.cluster.local:8000")),
            ("web.shop.svc.cluster.local", Some("web.shop.svc.cluster.local:80")),
            ("web.shop", None),
            ("websvc.cluster.local", None),
            ("", None),
            ("10.0.0.1:80", None),
            ("[fd00::1]:80", None),
            ("web.shop.svc.cluster.local:", None),
            ("web.shop.svc.cluster.local:0", None),
            ("we b.shop.svc.cluster.local", None),
        ] {
            let found = lookup_name(authority, &["svc.cluster.local".to_owned()]);
            assert_eq!(found.as_deref(), expected, "{authority}");
        }
        assert_eq!(lookup_name("a.example", &[String::new()]).as_deref(), Some("a.example:80"));
        assert_eq!(lookup_name("web.shop.svc.cluster.local", &[]), None);
    }
}
