//! The world, as every one of our processes meets it: environment, log, clock, tasks, metrics, the admin port and the
//! wire API. What to do about it is decided in `remora-core`; this crate reads, waits, counts and reports.

pub mod admin;
pub mod api;
pub mod certify;
pub mod clock;
pub mod control;
pub mod env;
pub mod log;
pub mod metrics;
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::default_trait_access,
    clippy::large_enum_variant,
    reason = "it is generated"
)]
pub mod proto;
pub mod room;
pub mod tasks;
pub mod tls;
