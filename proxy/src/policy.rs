//! The inbound policy of every port: the control plane's latest word, the default until there is one.

use crate::{
    config::InboundConfig,
    discover::{Cache, Full, Known, Watch},
    http::filters::Filters,
};
use remora_core::{
    identity::Identity,
    policy::{self, Peer, Permit, Refusal, ServerPolicy},
    rate::{Limiter, Quota, RateLimits, Scope},
    route::{RequestView, Table, matched_prefix},
};
use remora_runtime::clock;
use std::{
    collections::HashMap,
    fmt,
    future::{Future, pending},
    net::IpAddr,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};
use tokio::{sync::watch, task::unconstrained};

/// A server policy, and what of it is not applied by this proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub policy: Arc<InForce>,
    pub ignored: Vec<Arc<str>>,
}

/// A server policy as requests meet it: compiled when it arrives.
pub struct InForce {
    policy: ServerPolicy,
    table: Table,
    /// By route and rule.
    filters: Vec<Vec<Option<Box<Filters>>>>,
}

impl InForce {
    pub fn compile(policy: ServerPolicy) -> Self {
        let compiled = |route: &policy::InboundRoute| {
            route.filters.iter().map(|filters| Filters::compile(filters)).collect()
        };
        let filters = policy::routes(&policy).iter().map(compiled).collect();
        Self { filters, table: policy::table(&policy), policy }
    }

    /// See [`policy::authorize_http`].
    pub fn authorize_http<R: RequestView>(
        &self,
        client: IpAddr,
        peer: &Peer,
        request: &R,
    ) -> Result<Permit, Refusal> {
        policy::authorize_http(&self.policy, &self.table, client, peer, request)
    }

    /// What is done with a request that was permitted, if anything; and how much of its path the rule's prefix covers,
    /// where a filter needs to know.
    pub fn filters<R: RequestView>(&self, permit: &Permit, request: &R) -> Option<(&Filters, Option<usize>)> {
        let filters = self.filters.get(permit.route)?.get(permit.rule)?.as_deref()?;
        let covered =
            || matched_prefix(self.table.routes().get(permit.route)?.rules.get(permit.rule)?, request);
        Some((filters, filters.replace_prefix.then(covered).flatten()))
    }
}

impl Deref for InForce {
    type Target = ServerPolicy;

    fn deref(&self) -> &ServerPolicy {
        &self.policy
    }
}

/// What is compiled follows from the policy.
impl PartialEq for InForce {
    fn eq(&self, other: &Self) -> bool {
        self.policy == other.policy
    }
}

impl fmt::Debug for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy.fmt(f)
    }
}

/// The policies of this pod's ports.
pub struct Policies {
    cache: Cache<u16, Server>,
    /// Kept from start to end: the ports that the pod names.
    _named: Vec<Watch<Server>>,
    default: Arc<InForce>,
    default_opaque: Arc<InForce>,
    opaque_ports: std::collections::BTreeSet<u16>,
    limiters: Arc<Limiters>,
}

/// The policy of one port as a connection follows it.
#[derive(Clone)]
pub struct PortPolicy {
    watch: Option<Watch<Server>>,
    default: Arc<InForce>,
    port: u16,
    limiters: Arc<Limiters>,
}

/// What is left of the rate limits of each port, for all workers and connections, and for the next policy too. There are
/// no more than ports with such a policy.
#[derive(Default)]
struct Limiters(Mutex<HashMap<u16, Limiter>>);

impl Policies {
    /// Begins to watch the named ports at once.
    pub fn new(
        cache: Cache<u16, Server>,
        inbound: &InboundConfig,
        cluster_networks: &[ipnet::IpNet],
        admin_port: u16,
    ) -> Self {
        let named = inbound.ports.iter().copied().chain([admin_port]);
        let named = named.filter_map(|port| cache.watch(&port).ok()).collect();
        let default = |opaque| {
            let policy =
                inbound.default_policy.server_policy(cluster_networks, inbound.detect_timeout, opaque);
            Arc::new(InForce::compile(policy))
        };
        Self {
            _named: named,
            default: default(false),
            default_opaque: default(true),
            opaque_ports: inbound.opaque_ports.clone(),
            limiters: Arc::default(),
            cache,
        }
    }

    /// The policy of a port. Beyond the bound of watched ports the default policy holds.
    pub fn port(&self, port: u16) -> PortPolicy {
        let watch = self.cache.watch(&port).map_err(|Full { .. }| ()).ok();
        PortPolicy { watch, default: self.default(port).clone(), port, limiters: self.limiters.clone() }
    }

    /// What holds for a port now, for labels: a port that nobody watches is not watched for this.
    pub fn known(&self, port: u16) -> Arc<InForce> {
        self.in_force(port, &self.cache.peek(&port).unwrap_or(Known::Pending))
    }

    /// What holds for a port of which so much is known.
    pub fn in_force(&self, port: u16, known: &Known<Server>) -> Arc<InForce> {
        match known {
            Known::Is(server) => server.policy.clone(),
            Known::Pending | Known::Absent(_) => self.default(port).clone(),
        }
    }

    fn default(&self, port: u16) -> &Arc<InForce> {
        if self.opaque_ports.contains(&port) { &self.default_opaque } else { &self.default }
    }

    /// Every watched port, for `/state.json`.
    pub fn snapshot(&self) -> Vec<(u16, Known<Server>)> {
        self.cache.snapshot()
    }
}

impl PortPolicy {
    /// What holds now.
    pub fn latest(&mut self) -> Arc<InForce> {
        if let Some(watch) = &mut self.watch {
            watch.latest();
        }
        self.current()
    }

    /// What holds now, without taking it as seen.
    pub fn current(&self) -> Arc<InForce> {
        match self.watch.as_ref().map(Watch::peek) {
            Some(Known::Is(server)) => server.policy.clone(),
            // NotFound and Unavailable alike: the default, until the controller knows better. Contract 3.4.
            Some(Known::Pending | Known::Absent(_)) | None => self.default.clone(),
        }
    }

    /// May this client make one more request by these limits of the port? If not, which one it met.
    pub fn take(&self, limits: &Arc<RateLimits>, identity: Option<&Identity>) -> Result<(), (Scope, Quota)> {
        let mut limiters = self.limiters.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limiter = limiters.entry(self.port).or_insert_with(|| Limiter::new(limits.clone()));
        if !Arc::ptr_eq(limiter.limits(), limits) {
            limiter.change(limits.clone());
        }
        // Read under the lock, so that it does not go backwards.
        limiter.take(identity, clock::now())
    }

    /// Whether there may ever be another.
    pub fn may_change(&self) -> bool {
        self.watch.is_some()
    }

    /// News of this policy, if there may be any.
    pub fn news(&self) -> Option<News> {
        self.watch.as_ref().map(|watch| News::of(watch.receiver()))
    }

    /// Waits for another policy than the one last seen; for ever when there will be none.
    pub async fn changed(&mut self) {
        if let Some(watch) = &mut self.watch
            && watch.changed().await.is_ok()
        {
            return;
        }
        pending::<()>().await;
    }
}

/// News of a policy for a connection that is woken for other reasons: as long as there is none, asking costs a glance.
pub struct News {
    next: Next,
    /// Who is told by `next`.
    told: Option<Arc<Told>>,
}

type Next = Pin<Box<dyn Future<Output = watch::Receiver<Known<Server>>> + Send>>;

/// A task, and whether [`News::next`] has woken it since that was asked last. To look at the policy instead would not do:
/// `next` is woken also for what it has seen already, and never again before it is asked.
struct Told {
    woken: AtomicBool,
    task: Waker,
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl News {
    fn of(seen: watch::Receiver<Known<Server>>) -> Self {
        Self { next: after(seen), told: None }
    }

    /// Whether there was news since it was asked last; if not, the task is woken by the next.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let told = match &self.told {
            Some(told) if told.task.will_wake(cx.waker()) => {
                if !told.woken.load(Ordering::Acquire) {
                    return false;
                }
                told.clone()
            }
            _ => {
                let told = Told { woken: AtomicBool::new(false), task: cx.waker().clone() };
                self.told.insert(Arc::new(told)).clone()
            }
        };
        // Before it is asked: what comes from here on is told anew.
        told.woken.swap(false, Ordering::AcqRel);
        let told = Waker::from(told);
        let mut news = false;
        while let Poll::Ready(seen) = self.next.as_mut().poll(&mut Context::from_waker(&told)) {
            news = true;
            self.next = after(seen);
        }
        news
    }
}

/// Unconstrained: where it is pending it has to be waiting for news. With the task's budget used up it would be pending
/// without that, and is asked again only when there is something to hear.
fn after(seen: watch::Receiver<Known<Server>>) -> Next {
    Box::pin(unconstrained(next(seen)))
}

/// Waits for news; for ever when there will be none.
async fn next(mut seen: watch::Receiver<Known<Server>>) -> watch::Receiver<Known<Server>> {
    if seen.changed().await.is_err() {
        pending::<()>().await;
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Absence;
    use std::{future::poll_fn, thread, time::Duration};

    #[test]
    fn every_follower_hears_the_last_word() {
        // Between a word and its notice there are a few instructions: it takes some rounds to meet them.
        (0..50).for_each(|_| all_hear_the_last_word());
    }

    #[track_caller]
    fn all_hear_the_last_word() {
        const LAST: &str = "1000";
        let (sender, latest) = watch::channel(Known::Pending);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let follow = || {
            let (mut news, latest) = (News::of(latest.clone()), latest.clone());
            async move {
                let is_last =
                    || matches!(&*latest.borrow(), Known::Absent(Absence::Refused(word)) if **word == *LAST);
                let mut asked = 0;
                poll_fn(|cx| {
                    asked += 1;
                    // Now and then it is woken for something else.
                    if asked % 3 == 0 {
                        cx.waker().wake_by_ref();
                    }
                    if news.poll(cx) && is_last() { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        };
        let followers: Vec<_> = (0..50).map(|_| runtime.spawn(follow())).collect();
        let saying = thread::spawn(move || {
            for word in 1..=1000 {
                sender.send_replace(Known::Absent(Absence::Refused(word.to_string().into())));
            }
            sender
        });
        let heard = futures_util::future::join_all(followers);
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), heard).await.unwrap() });
        drop(saying.join().unwrap());
    }
}
