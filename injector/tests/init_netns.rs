//! `remora-init` against the kernel: in network namespaces of its own, with real iptables, as root and as the user
//! that a pod runs it as.
//!
//! Needs root, iproute2, iptables (nft and legacy), setcap and capsh. Where that is missing each test says so and
//! passes, but fails if CI=true.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use remora_injector::redirect::table::Table;
use remora_injector::redirect::{Family, Plan};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INIT: &str = env!("CARGO_BIN_EXE_remora-init");
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const ARGUMENTS: &str = "--incoming-proxy-port 4143 --outgoing-proxy-port 4140 --proxy-uid 2102 \
    --inbound-ports-to-ignore 4190,4191,4567,4568 --outbound-ports-to-ignore 4567-4568,443";

/// What [`ARGUMENTS`] mean.
fn plan() -> Plan {
    let range = |text: &str| text.parse().unwrap();
    Plan {
        incoming_proxy_port: 4143,
        outgoing_proxy_port: 4140,
        proxy_uid: NonZeroU32::new(2102),
        proxy_gid: None,
        ports_to_redirect: Vec::new(),
        inbound_ports_to_ignore: ["4190", "4191", "4567", "4568"].map(range).to_vec(),
        outbound_ports_to_ignore: ["4567-4568", "443"].map(range).to_vec(),
        subnets_to_ignore: Vec::new(),
        ipv6: true,
    }
}

#[test]
fn rules_are_set_proven_and_the_same_when_set_twice() {
    let Some(pod) = Pod::new() else { return };
    let ran = pod.init(ARGUMENTS);
    assert_exit(&ran, 0);
    for family in FAMILIES {
        for proven in ["redirect-all-outgoing-to-proxy-port", "ignore-loopback", "ignore-port-4567:4568,443"]
        {
            assert_says(&ran, &format!("{family}: {proven}: proven"));
        }
        assert_eq!(pod.table(family), Table::planned(&plan(), family));
    }
    let first = FAMILIES.map(|family| pod.saved("nft", family));
    assert_exit(&pod.init(ARGUMENTS), 0);
    assert_eq!(FAMILIES.map(|family| pod.saved("nft", family)), first);
}

#[test]
fn inbound_connections_reach_the_proxy_and_skipped_ports_do_not() {
    let Some(pod) = Pod::new() else { return };
    assert_exit(&pod.init(ARGUMENTS), 0);
    for address in [POD_V4, POD_V6] {
        let address: IpAddr = address.parse().unwrap();
        for (port, expected) in [(80, "4143"), (4190, "4190"), (4140, "4143")] {
            assert_eq!(pod.who_answers(&[4143, 4190, 4140], SocketAddr::new(address, port)), expected);
        }
    }
}

#[test]
fn rules_written_the_way_linkerd_does_are_taken_over() {
    let Some(pod) = Pod::new() else { return };
    for family in FAMILIES {
        for line in [
            "-N PROXY_INIT_REDIRECT",
            "-A PROXY_INIT_REDIRECT -p tcp --match multiport --dports 4190,4191 -j RETURN -m comment --comment proxy-init/ignore-port-4190,4191",
            "-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-port 4143 -m comment --comment proxy-init/redirect-all-incoming-to-proxy-port",
            "-A PREROUTING -j PROXY_INIT_REDIRECT -m comment --comment proxy-init/install-proxy-init-prerouting",
            "-N PROXY_INIT_OUTPUT",
            "-A PROXY_INIT_OUTPUT -m owner --uid-owner 9999 -j RETURN -m comment --comment proxy-init/ignore-proxy-user-id",
            "-A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-port 4140 -m comment --comment proxy-init/redirect-all-outgoing-to-proxy-port",
            "-A OUTPUT -j PROXY_INIT_OUTPUT -m comment --comment proxy-init/install-proxy-init-output",
        ] {
            pod.iptables("nft", family, line);
        }
    }
    assert_exit(&pod.init(ARGUMENTS), 0);
    for family in FAMILIES {
        assert_eq!(pod.table(family), Table::planned(&plan(), family));
    }
}

#[test]
fn half_written_and_doubled_rules_are_repaired() {
    let Some(pod) = Pod::new() else { return };
    for line in [
        "-N PROXY_INIT_OUTPUT",
        "-A OUTPUT -j PROXY_INIT_OUTPUT",
        "-A OUTPUT -j PROXY_INIT_OUTPUT",
        "-A OUTPUT -p tcp --dport 80 -m comment --comment \"two words\" -j PROXY_INIT_OUTPUT",
        "-A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-port 1",
    ] {
        pod.iptables("nft", Family::V4, line);
    }
    assert_exit(&pod.init(ARGUMENTS), 0);
    assert_eq!(pod.table(Family::V4), Table::planned(&plan(), Family::V4));
}

#[test]
fn rules_left_by_legacy_are_removed() {
    let Some(pod) = Pod::new() else { return };
    for mode in ["legacy", "nft"] {
        assert_exit(&pod.init(&format!("{ARGUMENTS} --iptables-mode {mode}")), 0);
        let other = if mode == "nft" { "legacy" } else { "nft" };
        for family in FAMILIES {
            assert!(pod.saved(mode, family).contains("-j PROXY_INIT_OUTPUT"));
            assert!(!pod.saved(other, family).contains("PROXY_INIT"), "{}", pod.saved(other, family));
        }
    }
}

#[test]
fn other_peoples_rules_are_left_alone() {
    let Some(pod) = Pod::new() else { return };
    pod.iptables(
        "nft",
        Family::V4,
        "-A OUTPUT -d 127.0.0.11/32 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:5353",
    );
    assert_exit(&pod.init(ARGUMENTS), 0);
    assert!(pod.saved("nft", Family::V4).contains("--to-destination 127.0.0.11:5353"));
}

#[test]
fn killed_in_the_middle_it_leaves_all_or_nothing() {
    let Some(pod) = Pod::new() else { return };
    let mut seen = [false; 2];
    // It says what it is about to apply, line by line, and then applies it: killed after each line in turn, it dies
    // before, during and after both families' transactions.
    let arguments = format!("{ARGUMENTS} --log-level debug");
    for lines in 0..36 {
        let mut child = pod.command(INIT, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        assert!(said.lines().take(lines).all(|line| line.is_ok()));
        child.kill().unwrap();
        child.wait().unwrap();
        pod.wait_until_empty();
        for family in FAMILIES {
            let table = pod.table(family);
            let (none, all) = (Table::default(), Table::planned(&plan(), family));
            let without_rules = table.rules().count() == none.rules().count();
            assert!(without_rules || table == all, "{}", pod.saved("nft", family));
            seen[usize::from(table == all)] = true;
            pod.flush(family);
        }
    }
    assert_eq!(seen, [true, true], "the kills came all too early or all too late to show anything");
}

#[test]
fn a_rule_planted_by_hand_is_found_and_named() {
    let Some(pod) = Pod::new() else { return };
    pod.iptables("nft", Family::V4, "-A OUTPUT -p tcp --dport 31337 -j ACCEPT");
    pod.iptables("nft", Family::V4, "-A PREROUTING -s 203.0.113.7 -j ACCEPT");
    let ran = pod.init(ARGUMENTS);
    assert_exit(&ran, 95);
    assert_says(&ran, "IPv4 rule redirect-all-outgoing-to-proxy-port does not hold");
    assert_says(&ran, "by the rule `-A OUTPUT -p tcp -m tcp --dport 31337 -j ACCEPT`");
    assert_says(&ran, "IPv4 rule redirect-all-incoming-to-proxy-port does not hold");
    assert_says(&ran, "what to do: ");
}

#[test]
fn what_the_nat_table_does_not_show_is_found_by_dialling() {
    let Some(pod) = Pod::new() else { return };
    pod.iptables(
        "nft",
        Family::V6,
        "-t filter -A OUTPUT -p tcp --dport 4140 -j REJECT --reject-with tcp-reset",
    );
    let ran = pod.init(ARGUMENTS);
    assert_exit(&ran, 95);
    assert_says(
        &ran,
        "IPv6 rule redirect-all-outgoing-to-proxy-port does not hold: a dial to [100::1]:20001",
    );
}

#[test]
fn as_a_pods_user_without_new_privileges_it_works_with_nft() {
    as_a_pods_user("nft");
}

#[test]
fn as_a_pods_user_without_new_privileges_it_works_with_legacy() {
    as_a_pods_user("legacy");
}

fn as_a_pods_user(mode: &str) {
    let Some(pod) = Pod::new() else { return };
    let image = Image::new(Capable::Yes);
    let ran = pod.init_as_kubelet(&image, &format!("{ARGUMENTS} --iptables-mode {mode}"));
    assert_exit(&ran, 0);
    assert_says(&ran, "IPv4: redirect-all-outgoing-to-proxy-port: proven");
    assert_says(&ran, "IPv6: redirect-all-outgoing-to-proxy-port: proven");
    assert!(pod.saved(mode, Family::V4).contains("-j PROXY_INIT_OUTPUT"));
    let again = pod.init_as_kubelet(&image, &format!("{ARGUMENTS} --iptables-mode nft"));
    assert_exit(&again, 0);
    assert!(!pod.saved("legacy", Family::V4).contains("PROXY_INIT"));
}

#[test]
fn an_image_without_file_capabilities_is_told_so() {
    let Some(pod) = Pod::new() else { return };
    let ran = pod.init_as_kubelet(&Image::new(Capable::No), ARGUMENTS);
    assert_exit(&ran, 71);
    assert_says(&ran, "setcap cap_net_raw,cap_net_admin+eip");
}

#[test]
fn without_iptables_each_one_that_was_tried_is_named() {
    let Some(pod) = Pod::new() else { return };
    let empty = tempfile::tempdir().unwrap();
    let ran = pod.command(INIT, ARGUMENTS).env("PATH", empty.path()).output().unwrap();
    assert_exit(&ran, 71);
    for tried in [
        "iptables-nft-save: cannot be run",
        "iptables-save: cannot be run",
        "iptables-legacy-save: cannot be run",
    ] {
        assert_says(&ran, tried);
    }
}

#[test]
fn a_configured_pair_that_does_not_work_is_passed_over() {
    let Some(pod) = Pod::new() else { return };
    assert_exit(&pod.init(&format!("{ARGUMENTS} --firewall-bin-path /nowhere/iptables")), 0);
    assert_eq!(pod.table(Family::V6), Table::planned(&plan(), Family::V6));
}

#[test]
fn where_ipv6_is_off_it_is_said_and_not_dialled() {
    let Some(pod) = Pod::new() else { return };
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    let ran = pod.init(ARGUMENTS);
    assert_exit(&ran, 0);
    assert_says(&ran, "IPv4: redirect-all-outgoing-to-proxy-port: proven");
    assert_says(&ran, "IPv6: redirect-all-outgoing-to-proxy-port: not dialled");
    assert_eq!(pod.table(Family::V6), Table::planned(&plan(), Family::V6));
}

#[test]
fn without_a_route_it_is_said_and_not_dialled() {
    let Some(pod) = Pod::new() else { return };
    pod.sh("ip -6 route del default && ip -4 route del default");
    let ran = pod.init(ARGUMENTS);
    assert_exit(&ran, 0);
    assert_says(&ran, "IPv4: redirect-all-outgoing-to-proxy-port: not dialled: this pod has no IPv4 route");
    assert_says(&ran, "IPv6: redirect-all-outgoing-to-proxy-port: not dialled: this pod has no IPv6 route");
}

#[test]
fn ipv6_can_be_left_out() {
    let Some(pod) = Pod::new() else { return };
    let ran = pod.init(&format!("{ARGUMENTS} --ipv6=false --log-format json"));
    assert_exit(&ran, 0);
    assert_eq!(pod.table(Family::V6).rules().count(), 0);
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(message["level"].is_string() && message["message"].is_string(), "{line}");
    }
}

#[test]
fn a_namespace_can_be_named() {
    let Some(pod) = Pod::new() else { return };
    let ran = Command::new(INIT)
        .args(ARGUMENTS.split_whitespace())
        .arg(format!("--netns={}", pod.path().display()))
        .output()
        .unwrap();
    assert_exit(&ran, 0);
    assert_eq!(pod.table(Family::V4), Table::planned(&plan(), Family::V4));
}

#[test]
fn simulating_changes_nothing() {
    let Some(pod) = Pod::new() else { return };
    let ran = pod.init(&format!("{ARGUMENTS} --simulate"));
    assert_exit(&ran, 0);
    assert_says(
        &ran,
        "-A OUTPUT -m comment --comment \"proxy-init/install-proxy-init-output\" -j PROXY_INIT_OUTPUT",
    );
    assert_eq!(pod.table(Family::V4).rules().count(), 0);
}

#[test]
fn wrong_arguments_end_with_64_and_all_are_listed() {
    let ran = Command::new(INIT).args(["--wrong", "--proxy-uid", "root"]).output().unwrap();
    assert_exit(&ran, 64);
    for named in ["--wrong", "--proxy-uid", "--incoming-proxy-port", "--outgoing-proxy-port"] {
        assert_says(&ran, named);
    }
}

#[track_caller]
fn assert_exit(ran: &Output, code: i32) {
    assert_eq!(ran.status.code(), Some(code), "{}", said(ran));
}

#[track_caller]
fn assert_says(ran: &Output, text: &str) {
    assert!(said(ran).contains(text), "{text:?} is not in:\n{}", said(ran));
}

fn said(ran: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr))
}

const POD_V4: &str = "198.18.0.2";
const POD_V6: &str = "fd77::2";

/// A pod's network namespace and, at the other end of its veth, a node's; both removed when dropped.
struct Pod {
    name: String,
    node: String,
}

impl Pod {
    /// `None` where namespaces cannot be had, which is said, and is a failure under CI=true.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if let Err(missing) = requirements() {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "cannot run: {missing}");
            // Not by the macro, whose words the test runner keeps to itself when a test passes.
            let mut terminal = std::io::stderr();
            writeln!(terminal, "NOT RUN: {missing}").unwrap();
            return None;
        }
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pod = Self { name: format!("remora-init-{id}"), node: format!("remora-node-{id}") };
        for name in [&pod.name, &pod.node] {
            succeed(Command::new("ip").args(["netns", "add", name]));
        }
        let Self { name, node } = &pod;
        pod.sh(&format!(
            "ip link set lo up && ip link add eth0 type veth peer name eth0 netns {node} && \
             ip addr add {POD_V4}/24 dev eth0 && ip addr add {POD_V6}/64 dev eth0 nodad && ip link set eth0 up && \
             ip -n {node} link set lo up && ip -n {node} addr add 198.18.0.1/24 dev eth0 && \
             ip -n {node} addr add fd77::1/64 dev eth0 nodad && ip -n {node} link set eth0 up && \
             ip route add default via 198.18.0.1 && ip route add default via fd77::1"
        ));
        assert!(Path::new("/run/netns").join(name).exists());
        Some(pod)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn command(&self, program: &str, arguments: &str) -> Command {
        let ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].into_iter().find(|ip| Path::new(ip).exists());
        let mut command = Command::new(ip.unwrap_or("ip"));
        command.args(["netns", "exec", &self.name, program]).args(arguments.split_whitespace());
        command
    }

    fn init(&self, arguments: &str) -> Output {
        self.command(INIT, arguments).output().unwrap()
    }

    /// As a kubelet has the container runtime do it: the permitted set is kept over the change of user, nothing is
    /// effective or ambient, no_new_privs is set, /run is an empty volume; then exec.
    fn init_as_kubelet(&self, image: &Image, arguments: &str) -> Output {
        let script = format!(
            "mount -t tmpfs -o mode=1777 tmpfs /run && export PATH={0} && exec {1} --keep=1 --gid=65534 \
             --uid=65534 --caps=cap_net_admin,cap_net_raw=p --noamb --no-new-privs --shell={0}/remora-init -- {2}",
            image.path().display(),
            find("capsh").unwrap().display(),
            arguments
        );
        self.command("sh", "-c").arg(script).output().unwrap()
    }

    #[track_caller]
    fn sh(&self, script: &str) {
        succeed(self.command("sh", "-c").arg(script));
    }

    /// `line` as people type it, in the nat table unless it says otherwise.
    #[track_caller]
    fn iptables(&self, mode: &str, family: Family, line: &str) {
        let table = if line.starts_with("-t ") { "" } else { "-t nat " };
        self.sh(&format!("{} {table}{line}", tool(mode, family)));
    }

    fn saved(&self, mode: &str, family: Family) -> String {
        let saved = self.command(&format!("{}-save", tool(mode, family)), "-t nat").output().unwrap();
        assert!(saved.status.success(), "{}", said(&saved));
        let saved = String::from_utf8(saved.stdout).unwrap();
        // Times and counters differ from one look to the next.
        let lines = saved.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// Without the empty chains that every kernel has, as [`Table::planned`] has none.
    fn table(&self, family: Family) -> Table {
        let saved = self.saved("nft", family);
        let rules: Vec<&str> = saved.lines().filter(|line| !line.starts_with(':')).collect();
        Table::parse(&rules.join("\n"), family).unwrap()
    }

    fn flush(&self, family: Family) {
        let mut child = self
            .command(&format!("{}-restore", tool("nft", family)), "")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"*nat\nCOMMIT\n").unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Waits for the children that a killed init leaves.
    fn wait_until_empty(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let pids = Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap();
            if pids.stdout.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "processes stay: {}", said(&pids));
            std::thread::yield_now();
        }
    }

    /// Listens on all `ports` in the pod, dials `target` from the node, and says which port answered.
    fn who_answers(&self, ports: &[u16], target: SocketAddr) -> String {
        let listeners: Vec<(u16, TcpListener)> = inside(&self.name, || {
            let bind = |port: u16| (port, TcpListener::bind(("::", port)).unwrap());
            ports.iter().map(|port| bind(*port)).collect()
        });
        std::thread::scope(|scope| {
            for (port, listener) in &listeners {
                scope.spawn(move || {
                    listener.set_nonblocking(false).unwrap();
                    while let Ok((mut peer, _)) = listener.accept() {
                        peer.write_all(port.to_string().as_bytes()).unwrap();
                    }
                });
            }
            let mut answer = String::new();
            let dialled = inside(&self.node, || TcpStream::connect_timeout(&target, Duration::from_secs(5)));
            let read = dialled.and_then(|mut stream| stream.read_to_string(&mut answer));
            for (_, listener) in &listeners {
                rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
            }
            read.unwrap();
            answer
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for name in [&self.name, &self.node] {
            let _gone = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs `work` on a thread of its own inside a namespace: sockets stay in the one they were made in.
fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(Path::new("/run/netns").join(name)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Capable {
    Yes,
    No,
}

/// The proxy's image in one folder: our binary and the xtables ones, with or without their file capabilities.
struct Image(tempfile::TempDir);

impl Image {
    fn new(capable: Capable) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let nft = find("xtables-nft-multi").unwrap();
        let legacy = find("xtables-legacy-multi").unwrap();
        for (from, name) in
            [(Path::new(INIT), "remora-init"), (&nft, "xtables-nft-multi"), (&legacy, "xtables-legacy-multi")]
        {
            let to = folder.path().join(name);
            // By another process: a thread that forks while this one writes would keep the file busy.
            succeed(Command::new("install").args(["-m", "755"]).args([from, &to]));
            if capable == Capable::Yes {
                succeed(Command::new("setcap").arg("cap_net_raw,cap_net_admin+eip").arg(&to));
            }
        }
        for mode in ["nft", "legacy"] {
            for name in ["iptables", "ip6tables"] {
                for suffix in ["", "-save", "-restore"] {
                    let link = folder.path().join(format!("{name}-{mode}{suffix}"));
                    symlink(format!("xtables-{mode}-multi"), link).unwrap();
                }
            }
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn tool(mode: &str, family: Family) -> String {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{name}-{mode}")
}

fn requirements() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    for program in ["ip", "setcap", "capsh", "xtables-nft-multi", "xtables-legacy-multi"] {
        find(program).ok_or_else(|| format!("{program} is not installed"))?;
    }
    // Root in an ordinary container has no CAP_SYS_ADMIN.
    let tried = Command::new("unshare").args(["--mount", "--net", "true"]).output();
    let tried = tried.map_err(|error| format!("unshare cannot be run: {error}"))?;
    if !tried.status.success() {
        return Err(format!("network namespaces need CAP_SYS_ADMIN: {}", said(&tried)));
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.exists())
}

#[track_caller]
fn succeed(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", said(&ran));
}
