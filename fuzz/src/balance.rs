//! Load and choice: a load is a positive number that only traffic raises and time lowers; the choice is an endpoint that
//! exists and may be used, the lighter of those compared, and the one to avoid only when it is the last.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    balance::{Draw, Field, Standing, Strategy, Turns},
    ewma::PeakEwma,
    time::Time,
};
use std::time::Duration;

/// The description of endpoints, of what happens to them, and of draws.
pub fn balance(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.loads_hold();
        described.choices_hold();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    default_rtt: Duration,
    decay: Duration,
    events: Vec<Event>,
    endpoints: Vec<Endpoint>,
    except: Option<u8>,
    draws: Vec<u64>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// Time goes by; told late, it may go back.
    Passes(Duration),
    Told(Duration, u64),
    Begins,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Endpoint {
    load: f64,
    usable: bool,
}

impl Endpoint {
    /// All that are no number are one: arithmetic does not keep them apart.
    fn load(self) -> f64 {
        if self.load.is_nan() { f64::NAN } else { self.load }
    }
}

impl Described {
    fn loads_hold(&self) {
        let mut now = Time::default();
        let mut ewma = PeakEwma::new(self.default_rtt, self.decay, now);
        let mut highest = self.default_rtt;
        let mut in_flight = 0u32;
        for event in self.events.iter().take(200) {
            let before = ewma.load(in_flight, now);
            match event {
                Event::Passes(time) => {
                    let earlier = now;
                    now = now + *time;
                    let after = ewma.load(in_flight, now);
                    assert!(after <= before, "time alone raised the load");
                    if now > earlier && now.since(earlier) >= self.decay {
                        let most = (before * 0.368).max(f64::from(in_flight) + 1.0);
                        assert!(after <= most, "{after} after {time:?}, {before} before");
                    }
                }
                Event::Told(rtt, late) => {
                    let at = Time(now.0.saturating_sub(Duration::from_nanos(*late)));
                    ewma.observe(*rtt, at);
                    highest = highest.max(*rtt);
                    let after = ewma.load(in_flight, now);
                    // A higher round trip counts at once, if it was not told late.
                    let at_least = rtt.as_nanos() as f64 * (f64::from(in_flight) + 1.0);
                    let on_time = at.0 == now.0;
                    assert!(
                        !on_time || after >= before.min(at_least) * (1.0 - 1e-9),
                        "{after} after {rtt:?}, {before} before"
                    );
                    // And adds no more than itself.
                    assert!(
                        !on_time || after <= (before + at_least) * (1.0 + 1e-9),
                        "{after} after {rtt:?}, {before} before"
                    );
                }
                Event::Begins => {
                    in_flight = in_flight.saturating_add(1);
                    assert!(ewma.load(in_flight, now) > before, "one more in flight is no more load");
                }
            }
            let load = ewma.load(in_flight, now);
            let most = (highest.as_nanos() as f64).max(1.0) * (f64::from(in_flight) + 1.0);
            assert!(load.is_finite() && load >= 1.0, "{load}");
            assert!(load <= most * (1.0 + 1e-9), "{load} of at most {most}");
        }
    }

    fn choices_hold(&self) {
        let endpoints = self.endpoints.get(..64).unwrap_or(&self.endpoints);
        let except = self.except.map(usize::from);
        let field = Field::new(&vec![1; endpoints.len()], &[]);
        for random in self.draws.iter().take(20) {
            let standing = |index: usize| {
                let one = endpoints.get(index)?;
                let (usable, load) = (one.usable, one.load());
                Some(Standing { usable, rtt_ns: load, kept_rtt_ns: load, in_flight: 0 })
            };
            for except in [None, except] {
                let draw = Draw { strategy: Strategy::PeakEwma, except, random: *random };
                let chosen = field.choose(draw, standing, &Turns::default());
                self.is_sound(endpoints, chosen, except, *random);
                assert_eq!(chosen.is_some(), !endpoints.is_empty(), "somebody is better than nobody");
                if chosen.is_some() && chosen == except {
                    assert_eq!(endpoints.len(), 1, "{except:?} was to be avoided");
                }
            }
        }
    }

    /// In range; usable if anybody is whom we may choose; not the heaviest of several.
    fn is_sound(&self, endpoints: &[Endpoint], picked: Option<usize>, except: Option<usize>, random: u64) {
        let Some(picked) = picked else { return };
        assert!(picked < endpoints.len(), "{picked} of {}", endpoints.len());
        let allowed: Vec<usize> =
            (0..endpoints.len()).filter(|index| Some(*index) != except && endpoints[*index].usable).collect();
        if allowed.is_empty() {
            return;
        }
        assert!(allowed.contains(&picked), "{picked} is not among {allowed:?} (draw {random}): {self:?}");
        let rank = |index: usize| endpoints[index].load();
        let heavier = allowed.iter().filter(|other| rank(**other).total_cmp(&rank(picked)).is_ge()).count();
        assert!(allowed.len() == 1 || heavier >= 2, "{picked} is the heaviest of {allowed:?}: {self:?}");
    }
}
