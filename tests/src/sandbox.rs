//! The processes that hold namespaces, and the network between them.
//!
//! A node is one process: number 1 of a process namespace of its own, with a network and a mount namespace. A pod is one
//! process within it. No namespace has a name and no mount is made outside, so there is nothing to leave behind: the
//! node's process reads its standard input, the kernel closes that when the harness dies, and with the node's process
//! the kernel ends every process of every pod.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;

/// How long a helper process may take to set itself up. Generous: machines that run tests are busy.
pub const SETUP: Duration = Duration::from_secs(20);

/// A process id as the machine numbers it.
pub type Pid = i32;

/// The addresses of a node. Every node has namespaces of its own, so all nodes may use the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses;

impl Addresses {
    /// Services; pods are `10.244.0.0/16` and `fd00:10:244::/64`, as `kubeadm` and its documentation have them.
    pub const SERVICE_PREFIX: &'static str = "10.96.0.0/16";
    pub const SERVICE_PREFIX_V6: &'static str = "fd00:10:96::/112";
    /// The node's address on its bridge.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
    pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
    /// The cluster's DNS, where every distribution has it.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    /// The addresses of the `n`th pod, counted from 0.
    pub fn pod(n: u16) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let host = n.checked_add(2)?;
        let [high, low] = host.to_be_bytes();
        Some((Ipv4Addr::new(10, 244, high, low), Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, host)))
    }

    /// The ClusterIPs of the `n`th service, counted from 0.
    pub fn service(n: u16) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let host = n.checked_add(20)?;
        let [high, low] = host.to_be_bytes();
        Some((Ipv4Addr::new(10, 96, high, low), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, host)))
    }
}

/// Whether this machine's kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A node's process and its working directory.
pub struct NodeSandbox {
    child: Child,
    /// Closing it ends the node.
    stdin: Option<ChildStdin>,
    pub pid: Pid,
    /// On the machine's own file system: specs, logs, manifests.
    pub work: PathBuf,
}

static NODES: AtomicU32 = AtomicU32::new(0);
const WORK_PREFIX: &str = "remora-node-";

impl NodeSandbox {
    /// Starts the node's process. Directories that dead harnesses left are removed first.
    pub fn start(pod_exec: &Path) -> Result<Self> {
        remove_stale(&std::env::temp_dir());
        let own = std::process::id();
        let born = born(own).context("reading /proc/self/stat")?;
        let n = NODES.fetch_add(1, Ordering::Relaxed);
        let work = std::env::temp_dir().join(format!("{WORK_PREFIX}{own}-{born}-{n}"));
        let run = work.join("run");
        for directory in [&run, &work.join("logs"), &work.join("specs"), &work.join("manifests")] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let pid_file = work.join("node.pid");
        // Ignoring SIGCHLD makes the kernel reap orphans of the process namespace.
        let mut child = std::process::Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--"])
            .args(["env", "--ignore-signal=CHLD"])
            .arg(pod_exec)
            .arg("node")
            .args([&run, &pid_file])
            .stdin(Stdio::piped())
            // Ctrl-C is for the harness, which then ends the node.
            .process_group(0)
            .spawn()
            .context("starting the node's process")?;
        let stdin = child.stdin.take();
        let mut node = Self { child, stdin, pid: 0, work };
        node.pid = wait_for_pid(&mut node.child, &pid_file).context("starting the node's process")?;
        Ok(node)
    }

    /// The node's tmpfs, as processes of the node name it.
    pub fn inside(&self) -> PathBuf {
        self.work.join("run")
    }

    /// The node's tmpfs, as the harness reaches it.
    pub fn outside(&self) -> PathBuf {
        through(self.pid, &self.inside())
    }
}

impl Drop for NodeSandbox {
    fn drop(&mut self) {
        // The node ends everything in it and removes the directory; waiting here means that it is done when we return.
        drop(self.stdin.take());
        let deadline = Instant::now() + SETUP;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// A path of another process's mount namespace.
pub fn through(pid: Pid, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn wait_for_pid(child: &mut Child, pid_file: &Path) -> Result<Pid> {
    let deadline = Instant::now() + SETUP;
    loop {
        if let Ok(text) = fs::read_to_string(pid_file) {
            return text.trim().parse().with_context(|| format!("{} holds {text:?}", pid_file.display()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once ({status}); its message is above");
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            bail!("it was not ready within {SETUP:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// When a process began, in clock ticks since boot: with its id, what tells it from a later one of the same id.
fn born(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may contain anything but its closing parenthesis is the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn remove_stale(temp: &Path) {
    for entry in fs::read_dir(temp).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(WORK_PREFIX)) else { continue };
        let mut parts = rest.split('-').map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(was_born))) = (parts.next(), parts.next()) else { continue };
        let lives = u32::try_from(pid).ok().and_then(born) == Some(was_born);
        if !lives {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A pod's network, UTS and IPC namespaces, held by a process that ends when this value is dropped.
pub struct PodSandbox {
    _stdin: ChildStdin,
    pub pid: Pid,
}

impl PodSandbox {
    /// Starts the pod's process within the node.
    pub async fn start(node: Pid, pod_exec: &Path, hostname: &str, pid_file: &Path) -> Result<Self> {
        let mut child = std::process::Command::new("nsenter")
            .args([&format!("--target={node}"), "--mount", "--pid", "--"])
            .args(["unshare", "--net", "--uts", "--ipc", "--"])
            .arg(pod_exec)
            .args(["pause", hostname])
            .arg(pid_file)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting the pod's process")?;
        let stdin = child.stdin.take().context("the pod's process has no standard input")?;
        let deadline = tokio::time::Instant::now() + SETUP;
        let pid = read_pid(pid_file, deadline, || Ok(child.try_wait()?.is_some())).await?;
        // Reaped when it ends, which may be after this value is gone.
        std::thread::spawn(move || child.wait());
        Ok(Self { _stdin: stdin, pid })
    }
}

/// Waits for a helper to write its process id; `ended` says whether it ended instead.
pub async fn read_pid(
    pid_file: &Path,
    deadline: tokio::time::Instant,
    mut ended: impl FnMut() -> Result<bool>,
) -> Result<Pid> {
    loop {
        if let Ok(text) = fs::read_to_string(pid_file) {
            return text.trim().parse().with_context(|| format!("{} holds {text:?}", pid_file.display()));
        }
        if ended()? {
            bail!("the process ended while it was being set up");
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the process was not set up within {SETUP:?}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Gives the node a bridge that routes between its pods.
///
/// Pods have host addresses (/32, /128) and reach everything through the node, so that the node's connection tracking
/// sees both directions of a connection to a ClusterIP.
pub async fn connect_node(node: Pid) -> Result<()> {
    // With an address of its own: a bridge without one takes the lowest of its ports', and when a pod that joins later
    // changes it, those who know the old one send into the void until they ask again.
    let mut settings = String::from(
        "link set lo up\n\
         link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0\n",
    );
    let _ = writeln!(settings, "addr add {}/16 dev br0", Addresses::GATEWAY);
    let _ = writeln!(settings, "addr add {}/32 dev lo", Addresses::DNS);
    if has_ipv6() {
        let _ = writeln!(settings, "addr add {}/64 dev br0 nodad", Addresses::GATEWAY_V6);
    }
    settings.push_str("link set br0 up\n");
    // The node's own connections to a ClusterIP need a route before their destination is translated.
    let _ = writeln!(settings, "route add {} dev br0", Addresses::SERVICE_PREFIX);
    if has_ipv6() {
        let _ = writeln!(settings, "route add {} dev br0", Addresses::SERVICE_PREFIX_V6);
    }
    in_net(node, &["ip", "-batch", "-"], &settings).await.context("making the node's bridge")?;
    // Frames that the bridge itself carries are not for the rules of services (a machine with Docker has that switched
    // on): it would send a pod's call to its own Service back before its source was translated.
    let sysctls = "\
        set -e; cd /proc/sys/net
        echo 1 > ipv4/ip_forward
        echo 0 > ipv4/conf/all/send_redirects
        echo 0 > ipv4/conf/br0/send_redirects
        echo 0 > ipv4/conf/all/rp_filter
        echo 0 > ipv4/conf/br0/rp_filter
        if [ -d ipv6 ]; then echo 1 > ipv6/conf/all/forwarding; fi
        if [ -d bridge ]; then
            echo 0 > bridge/bridge-nf-call-iptables
            echo 0 > bridge/bridge-nf-call-ip6tables
        fi";
    in_net(node, &["sh"], sysctls).await.context("making the node forward packets")?;
    Ok(())
}

/// Joins a pod to the node's bridge under these addresses. `n` numbers the pod within the node.
pub async fn connect_pod(node: Pid, pod: Pid, n: u16, ips: &[IpAddr]) -> Result<()> {
    let outside = format!(
        "link add veth{n} type veth peer name eth0 netns {pod}\n\
         link set veth{n} master br0 up\n"
    );
    in_net(node, &["ip", "-batch", "-"], &outside).await.context("joining the pod to the node's bridge")?;
    let mut inside = String::from("link set lo up\n");
    let width = |ip: &IpAddr| if ip.is_ipv6() { "128" } else { "32" };
    for ip in ips {
        let nodad = if ip.is_ipv6() { " nodad" } else { "" };
        let _ = writeln!(inside, "addr add {ip}/{} dev eth0{nodad}", width(ip));
    }
    inside.push_str("link set eth0 up\n");
    for ip in ips {
        let gateway: IpAddr =
            if ip.is_ipv6() { Addresses::GATEWAY_V6.into() } else { Addresses::GATEWAY.into() };
        let _ = writeln!(inside, "route add {gateway}/{} dev eth0", width(ip));
        let _ = writeln!(inside, "route add default via {gateway} dev eth0");
    }
    in_net(pod, &["ip", "-batch", "-"], &inside).await.context("giving the pod its addresses")?;
    // containerd's default: a container that is not root may listen on port 80.
    in_net(pod, &["sh"], "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start").await?;
    Ok(())
}

/// Runs a program of the machine in the network namespace of `pid`, feeds it `input`, and returns what it printed.
pub async fn in_net(pid: Pid, argv: &[&str], input: &str) -> Result<String> {
    let mut child = tokio::process::Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg("--")
        .args(argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting nsenter")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on its standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("{} ({}): {}", argv.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `work` on a thread of its own in the network namespace of `pid`.
pub fn enter_net<T: Send>(pid: Pid, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            join_net(pid)?;
            Ok(work())
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Moves the calling thread, and it alone, into the network namespace of `pid`.
pub fn join_net(pid: Pid) -> Result<()> {
    use std::os::fd::AsFd as _;
    let path = format!("/proc/{pid}/ns/net");
    let namespace = fs::File::open(&path).with_context(|| format!("opening {path}"))?;
    rustix::thread::move_into_link_name_space(
        namespace.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .with_context(|| format!("joining {path}"))
}
