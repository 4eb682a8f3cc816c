//! Part 2: the same question asked from outside through the gateway, from a client in the mesh, and, as the control, from
//! a pod that is not. What the wire held, and what the server's proxies counted.

use anyhow::{Context as _, Result};

use super::stage::{Stage, counted, grown, series};
use super::tell::Teller;
use crate::capture::Packets;
use crate::token::unique_id;
use crate::{PodRef, shop};

/// What every answer begins with.
const ANSWER: &str = "hello from web-";

/// Who asks, by which way.
struct Way<'a> {
    told: &'static str,
    /// Whose requests to `web` are captured.
    last_hop: PodRef<'a>,
    asks: PodRef<'a>,
    url: String,
    /// What is searched for on the wire.
    marker: String,
    /// The service account that the server's proxy must see; none for the control.
    account: Option<&'static str>,
}

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let web = stage.replicas("web");
    let replicas: Vec<String> =
        web.iter().map(|pod| Ok(format!("host {}", pod.ip()?))).collect::<Result<_>>()?;
    let between = |pod: &PodRef<'_>| -> Result<String> {
        Ok(format!("tcp and host {} and ({})", pod.ip()?, replicas.join(" or ")))
    };
    let ways = ways(stage)?;
    let before = counted(&web)?;
    let captures: Vec<_> = ways
        .iter()
        .map(|way| stage.mesh.capture(&between(&way.last_hop)?))
        .collect::<Result<_>>()
        .context("capturing")?;
    for way in &ways {
        let answer = shop::curl(&way.asks, &[&way.url]);
        let seen = match answer {
            Ok(answer) if answer.starts_with(ANSWER) => Ok(format!("200 \"{}\"", answer.trim())),
            Ok(answer) => Err(format!("\"{}\"", answer.trim())),
            Err(error) => Err(format!("{error:#}")),
        };
        teller.claim(way.told, seen);
    }
    for way in &ways {
        counters(teller, way, &web, &before)?;
    }
    // Last, so that what went over the wire has long arrived at tcpdump.
    for (way, capture) in ways.iter().zip(captures) {
        wire(teller, way, &capture.stop()?);
    }
    Ok(())
}

fn ways(stage: &Stage) -> Result<Vec<Way<'_>>> {
    let marker = |who: &str| anyhow::Ok(format!("{who}-{}", unique_id()?));
    let (outside, client, stranger) = (marker("outside")?, marker("client")?, marker("stranger")?);
    Ok(vec![
        Way {
            told: "outside → gateway (Envoy) → web",
            last_hop: stage.pod("gateway")?,
            asks: stage.mesh.pod("outside", "visitor")?,
            url: format!("http://gateway.shop/?order={outside}"),
            marker: outside,
            account: Some("gateway"),
        },
        Way {
            told: "client → web",
            last_hop: stage.pod("client")?,
            asks: stage.pod("client")?,
            url: format!("http://web/?order={client}"),
            marker: client,
            account: Some("client"),
        },
        Way {
            told: "stranger (not in the mesh) → web",
            last_hop: stage.pod("stranger")?,
            asks: stage.pod("stranger")?,
            url: format!("http://web/?order={stranger}"),
            marker: stranger,
            account: None,
        },
    ])
}

/// The request's marker and the answer, looked for in every packet.
fn wire(teller: &mut Teller, way: &Way<'_>, seen: &Packets) {
    let hop = format!("the wire: {} → web", way.last_hop.name.name);
    let plaintext = [way.marker.as_bytes(), ANSWER.as_bytes()].map(|bytes| seen.contain(bytes));
    let records = seen.tls_application_data();
    let packets = seen.packets.len();
    let found = |found: bool| if found { "there" } else { "not there" };
    let told = format!(
        "{packets} packets, {records} begin a TLS record; request {}, answer {}",
        found(plaintext[0]),
        found(plaintext[1])
    );
    if way.account.is_some() {
        teller.holds(&hop, records > 0 && plaintext == [false, false], told);
    } else {
        teller.holds(&format!("{hop} (control)"), records == 0 && plaintext == [true, true], told);
    }
}

/// What the proxies of both replicas counted for it.
fn counters(
    teller: &mut Teller,
    way: &Way<'_>,
    web: &[PodRef<'_>],
    before: &[crate::metrics::Samples],
) -> Result<()> {
    let identity = way.account.map(shop::identity);
    let (told, labels) = if let Some(identity) = &identity {
        let proved = [("tls", "true"), ("client_id", identity.as_str())];
        ("web's proxies counted it by identity", proved)
    } else {
        let reason = [("tls", "no_identity"), ("no_tls_reason", "no_tls_from_remote")];
        ("web's proxies counted it as plaintext", reason)
    };
    let all: Vec<(&str, &str)> =
        [("direction", "inbound"), ("target_port", "80")].into_iter().chain(labels.iter().copied()).collect();
    let growth = grown(web, before, "request_total", &all, 1.0)?;
    // Every identity ends alike.
    let series =
        series("request_total", &labels).replace(".serviceaccount.identity.remora.cluster.local", ".…");
    teller.holds(told, growth.total_cmp(&1.0).is_eq(), format!("{series} +{growth}"));
    Ok(())
}
