//! How much there may be under way to a Service, against a count of what there is: nothing below its limit is refused, and
//! what is refused is told which limit, whoever takes and whoever changes it.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::balance::{Limited, Limits};
use remora_proxy::{
    fault::Fault,
    limits::{Limiter, Limiters, Permit},
    metrics::limits::LimitMetrics,
};
use remora_runtime::metrics::Registry;
use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock},
    time::Duration,
};

/// The description of two Services' limits, and of what begins and ends.
pub fn limits(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    services: [Asks; 2],
    steps: Vec<Step>,
}

/// Of connections, waiting requests, requests, each modulo 5; 0 is no limit.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Asks([u8; 3]);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Takes {
        second: bool,
        what: u8,
    },
    /// What has been under way longest, or another.
    Ends(u8),
    Changes {
        second: bool,
        to: Asks,
    },
    /// Nobody knows the Service any more, but for what is under way.
    Forgets {
        second: bool,
    },
}

/// One Service: what it asks for, who counts, and what is under way.
struct Service {
    name: Arc<str>,
    asks: Asks,
    limiter: Option<Arc<Limiter>>,
}

/// What is under way: of which Service, of which kind, and whether it was counted.
type Held = (usize, usize, Option<Permit>);

static METRICS: LazyLock<LimitMetrics> =
    LazyLock::new(|| LimitMetrics::register(&Registry::new(Duration::from_mins(1))));

impl Described {
    fn holds(&self) {
        let limiters = Limiters::default();
        let mut services = ["web.shop.svc.cluster.local:80", "web.shop.svc.cluster.local:81"]
            .map(|name| Service { name: name.into(), asks: Asks([0; 3]), limiter: None });
        for (service, asks) in services.iter_mut().zip(self.services) {
            service.changes(&limiters, asks);
        }
        let mut held: Vec<Held> = Vec::new();
        for (nth, step) in self.steps.iter().take(400).enumerate() {
            let told = format!("step {nth} of {self:?}");
            match *step {
                Step::Takes { second, what } => {
                    let (at, what) = (usize::from(second), usize::from(what) % Limited::ALL.len());
                    let counted = held
                        .iter()
                        .filter(|(of, kind, permit)| (*of, *kind) == (at, what) && permit.is_some());
                    match services[at].takes(what, counted.count()) {
                        Ok(permit) => held.push((at, what, permit)),
                        Err(wrong) => assert_eq!(wrong, None, "{told}"),
                    }
                }
                Step::Ends(_) if held.is_empty() => {}
                Step::Ends(which) => drop(held.remove(usize::from(which) % held.len())),
                Step::Changes { second, to } => services[usize::from(second)].changes(&limiters, to),
                Step::Forgets { second } => {
                    let at = usize::from(second);
                    let asks = services[at].asks;
                    services[at].limiter = None;
                    services[at].changes(&limiters, asks);
                }
            }
        }
    }
}

impl Service {
    fn changes(&mut self, limiters: &Limiters, asks: Asks) {
        self.asks = asks;
        self.limiter = limiters.of(&self.name, asks.limits(), &METRICS);
        assert_eq!(self.limiter.is_none(), asks.most() == [0; 3], "only who asks for a limit has one");
    }

    /// One more of a kind of which so many are counted; nothing is wrong where it is refused as it has to be.
    fn takes(&self, what: usize, counted: usize) -> Result<Option<Permit>, Option<String>> {
        let Some(limiter) = &self.limiter else { return Ok(None) };
        let most = usize::from(self.asks.most()[what]);
        let full = most > 0 && counted >= most;
        match limiter.take(Limited::ALL[what]) {
            Ok(_) if full => Err(Some(format!("{counted} of {most}, and one more"))),
            Ok(permit) => Ok(Some(permit)),
            Err(fault) if !full => Err(Some(format!("{counted} of {most}: {fault}"))),
            Err(fault) => Err(self.is_named(&fault, what).err()),
        }
    }

    /// Whoever is refused is told which limit of whom, and how much it is.
    fn is_named(&self, fault: &Fault, what: usize) -> Result<(), String> {
        let name = ["connections", "pending-requests", "concurrent-streams"][what];
        let (service, most) = (&self.name, self.asks.most()[what]);
        let expected =
            format!("{service} takes no more than {most} {name} from this proxy (limits.remora.io/{name})");
        if fault.to_string() == expected { Ok(()) } else { Err(format!("{fault}, not {expected}")) }
    }
}

impl Asks {
    /// Few, so that they are reached.
    fn most(self) -> [u8; 3] {
        self.0.map(|most| most % 5)
    }

    fn limits(self) -> Limits {
        let [connections, pending_requests, concurrent_streams] =
            self.most().map(|most| NonZeroU32::new(u32::from(most)));
        Limits { connections, pending_requests, concurrent_streams }
    }
}
