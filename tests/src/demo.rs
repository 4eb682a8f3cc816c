//! The story of `make demo`: real manifests become pods, real programs talk through real proxies, and every claim is
//! followed by what was measured for it in this run.
//!
//! In reading order: who guards the run (`guard`), where it plays (`stage`), its nine parts (`manifests`, `proof`,
//! `detection`, `rotation`, `canary`, `retrying`, `refused`, `routes`, `cost`), what they look with (`changes`, `load`,
//! `leaf`), how it is told (`tell`), and what `KEEP=1` leaves to look around in (`keep`).

pub mod guard;
pub mod stage;

pub mod canary;
pub mod cost;
pub mod detection;
pub mod manifests;
pub mod proof;
pub mod refused;
pub mod retrying;
pub mod rotation;
pub mod routes;

pub mod changes;
pub mod keep;
pub mod leaf;
pub mod load;
pub mod tell;

use std::time::Duration;

use anyhow::Result;
use stage::Stage;
use tell::{Teller, say};

/// What is promised of an optimised build. Another one makes no promise.
const PROMISED: Duration = Duration::from_secs(90);

/// Tells the story from beginning to end; with `keep`, leaves it running until Ctrl-C. True if every claim held.
///
/// # Errors
/// Where the stage cannot be set: what is missing, or what each process said last.
pub fn tell(keep: bool) -> Result<bool> {
    say("Remora: pods without a cluster, their traffic through injected proxies.");
    let mut teller = Teller::default();
    let stage = Stage::set(&teller)?;
    teller.part(1, "The manifests, and what the injector made of them", |teller| {
        manifests::tell(&stage, teller)
    });
    teller.part(2, "Requests, and what went over the wire", |teller| proof::tell(&stage, teller));
    teller.part(3, "Protocols, detected without being told", |teller| detection::tell(&stage, teller));
    teller.part(4, "Certificates rotated under load", |teller| rotation::tell(&stage, teller));
    teller.part(5, "A canary: nine of ten requests stay, and a header pins", |teller| {
        canary::tell(&stage, teller)
    });
    teller.part(6, "Retries hide a half-failing replica, as far as their budget goes", |teller| {
        retrying::tell(&stage, teller)
    });
    teller.part(7, "A caller that policy refuses, and the reason", |teller| refused::tell(&stage, teller));
    teller.part(8, "Routes: success and latency, by ServiceProfile", |teller| routes::tell(&stage, teller));
    teller.part(9, "What it costs", |teller| cost::tell(&stage, teller));
    let took = teller.elapsed();
    if !cfg!(debug_assertions) {
        teller.holds(
            "told in a minute and a half",
            took < PROMISED,
            format_args!("{:.1} s", took.as_secs_f64()),
        );
    }
    let held = teller.end();
    if keep {
        keep::until_interrupted(&stage)?;
    }
    teller.wait("removing everything that was started", || drop(stage));
    Ok(held)
}
