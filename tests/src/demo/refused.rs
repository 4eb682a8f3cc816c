//! Part 7: a policy admits one caller; another one is refused, and everybody concerned is told by what.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::stage::{Stage, counted, grown};
use super::tell::Teller;
use crate::{PodRef, peer, shop};

const POLICY: &str = include_str!("../../../demo/policy.yaml");
const LIMIT: Duration = Duration::from_secs(10);
/// What refuses the caller.
const BY: &str = "authorizationpolicy/only-the-client";

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let (client, caller) = (stage.pod("client")?, stage.pod("gateway")?);
    let kitchen = stage.replicas("kitchen");
    let (status, _) = ask(stage, &caller)?;
    teller.holds(
        "without a policy: everybody may",
        status == 200,
        format_args!("gateway → orders: {status}"),
    );

    stage.mesh.apply(POLICY).context("applying demo/policy.yaml")?;
    teller.line("demo/policy.yaml", "Server kitchen; AuthorizationPolicy only-the-client");
    let said = explained(stage, "shop/gateway", "orders:80")?;
    teller.line("remora explain, from the YAML alone:", &said);
    teller.holds(
        "it says beforehand by what",
        said.to_lowercase().contains(BY),
        format_args!("exit code 3, {BY}"),
    );
    let before = counted(&kitchen)?;
    let mut answer = (0, String::new());
    stage.until("the policy holds", || {
        answer = ask(stage, &caller)?;
        Ok(answer.0 == 403)
    })?;
    let (status, by) = answer;
    teller.holds("gateway → orders is refused", status == 403, status);
    teller.holds("the answer says by what", by.contains(BY), format_args!("remora-denied-by: {by}"));
    let why = kitchen.iter().find_map(|pod| refusal(&stage.mesh.logs(pod, "linkerd-proxy")));
    let why = why.unwrap_or_else(|| "no refusal in the log".into());
    teller.holds("and so does the kitchen's log", why.contains(BY), &why);
    let labels = [("srv_name", "kitchen"), ("policies", BY)];
    let denied = grown(&kitchen, &before, "inbound_http_authz_deny_total", &labels, 1.0)?;
    teller.holds("and its metric", denied >= 1.0, format_args!("policies=\"{BY}\" +{denied}"));
    let code = shop::curl(&client, &["-o", "/dev/null", "-w", "%{http_code}", "http://orders/orders/1"])?;
    teller.holds("client → orders is not", code == "200", code);
    Ok(())
}

/// What `remora explain` says before anybody asks: that the request will be refused.
fn explained(stage: &Stage, from: &str, to: &str) -> Result<String> {
    let manifests = stage.mesh.manifests();
    let said = Command::new(crate::node::bin_dir(None)?.join("remora"))
        .args(["explain", "--from", from, "--to", to, "--path", "/menu", "--manifests"])
        .arg(manifests)
        .output()
        .context("running remora explain")?;
    let printed = String::from_utf8_lossy(&said.stdout).into_owned();
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.code() == Some(3), "remora explain: {}\n{printed}{errors}", said.status);
    Ok(printed)
}

/// The status of an order, asked for on the pod's own network, and by what it was refused.
fn ask(stage: &Stage, from: &PodRef<'_>) -> Result<(u16, String)> {
    let to = stage.service("orders", 80)?;
    let head = from.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /menu HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")?;
        Ok(String::from_utf8_lossy(&peer::read_head(&mut stream)?).into_owned())
    })??;
    let status = head.get(9..12).and_then(|code| code.parse().ok()).context("no status")?;
    let by = head.lines().find_map(|line| line.strip_prefix("remora-denied-by: "));
    Ok((status, by.unwrap_or_default().to_owned()))
}

/// What the last refused request of a log was refused for.
fn refusal(log: &str) -> Option<String> {
    let line = log.lines().rfind(|line| line.contains("request refused"))?;
    Some(line.split_once("fault=")?.1.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refusal_of_a_log_is_told_without_what_comes_before_it() {
        let log = "a\n INFO request refused client=1.2.3.4:5 fault=x may not use server/a: no\n b\n";
        assert_eq!(refusal(log).as_deref(), Some("x may not use server/a: no"));
        assert_eq!(refusal("a\nb\n"), None);
    }
}
