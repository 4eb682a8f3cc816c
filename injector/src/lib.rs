//! What a pod becomes: the library behind `remora-injector` (the webhook), `remora inject` (the same on a stream of
//! YAML), `remora-init` (the redirect rules) and `remora-await` (the wait for the proxy, [`ready`]).
//!
//! In reading order: what people may write ([`annotations`], [`values`], [`config`]); whether a pod is injected
//! ([`decide`], with [`pod`] for what it asks of a pod); what is written into it ([`patch`]); and the two shells,
//! documents on a stream ([`inject`], and [`suppose`] for questions about manifests that were never in a cluster) and AdmissionReview over HTTPS ([`webhook`], with [`cluster`] for what it must
//! know besides the pod, [`serve`] for its listener and certificate, [`process`] for its life).

pub mod annotations;
pub mod cluster;
pub mod config;
pub mod decide;
pub mod init;
pub mod inject;
pub mod patch;
pub mod pod;
pub mod process;
pub mod ready;
pub mod redirect;
pub mod serve;
pub mod suppose;
pub mod values;
pub mod webhook;
