//! `KEEP=1`: the mesh stays, with the commands to look around in it, until Ctrl-C.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::stage::Stage;
use super::tell::{Teller, say};

/// Prints the commands and waits for SIGINT, SIGTERM or SIGHUP.
pub fn until_interrupted(stage: &Stage) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // First, so that a signal during the printing is not the end without goodbye.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        commands(stage)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Ok(())
    })
}

fn commands(stage: &Stage) -> Result<()> {
    let client = stage.pod("client")?;
    let container = client.pid("curl").context("the client's container does not run")?;
    let in_pod = format!("nsenter --target {container} --mount --net --uts --ipc --pid --wdns=/ --");
    let gateway = stage.mesh.pod("outside", "visitor")?.pid("curl").context("the visitor does not run")?;
    let outside = format!("nsenter --target {gateway} --mount --net --uts --ipc --pid --wdns=/ --");
    let manifests = stage.mesh.manifests();
    let logs = manifests.with_file_name("logs");
    say("\nIt stays until Ctrl-C. From another terminal, as root:");
    for (what, command) in [
        ("a request in the mesh", format!("{in_pod} curl -s http://web/")),
        ("a request from outside", format!("{outside} curl -s http://gateway.shop/")),
        ("a shell in the client's pod", format!("{in_pod} sh")),
        ("what its proxy counts", format!("{in_pod} curl -s http://127.0.0.1:4191/metrics")),
        ("what its proxy knows", format!("{in_pod} curl -s http://127.0.0.1:4191/state.json")),
        (
            "what is redirected to it",
            format!("nsenter --net=/proc/{container}/ns/net iptables-nft-save -t nat"),
        ),
        ("the wire", format!("nsenter --net=/proc/{}/ns/net tcpdump -n -A -i br0 tcp", stage.mesh.pid())),
        ("logs of every container", format!("ls {}/*", logs.display())),
        ("the live manifests", format!("ls {}", manifests.display())),
    ] {
        say(format_args!("   # {what}\n   {command}"));
    }
    let pods = stage.mesh.all_pods();
    let teller = Teller::default();
    say("\nEvery pod, its address and the process that holds its network:");
    for pod in &pods {
        let sandbox = pod.sandbox()?;
        teller.line(&pod.name.to_string(), format_args!("{:<14} {sandbox}", pod.ip()?));
    }
    Ok(())
}
