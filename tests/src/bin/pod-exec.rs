//! The helper that the pod harness runs inside namespaces: holds a node, holds a pod, becomes a container.
//!
//! A separate program, because joining a mount namespace, building a root and dropping privileges must happen in a
//! process of its own, and because this way no `unsafe` between `fork` and `exec` is needed. It decides nothing: the
//! harness hands it a finished [`ContainerSpec`].

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use remora_tests::spec::{Bind, ContainerSpec, User};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["node", tmpfs, pid_file] => node(Path::new(tmpfs), Path::new(pid_file)),
        ["pause", hostname, pid_file] => pause(hostname, Path::new(pid_file)),
        ["container", spec] => container(Path::new(spec)),
        _ => {
            Err(anyhow::anyhow!("usage: pod-exec node DIR PIDFILE | pause HOSTNAME PIDFILE | container SPEC"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            // What a shell says when a command cannot be started; runc's users know it.
            ExitCode::from(126)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the helper's standard error is the container's log")]
fn complain(error: &anyhow::Error) {
    eprintln!("pod-exec: {error:#}");
}

/// Process 1 of the node's process namespace: when it ends, the kernel ends every process of every pod.
fn node(tmpfs: &Path, pid_file: &Path) -> Result<()> {
    rustix::mount::mount("node", tmpfs, "tmpfs", MountFlags::NODEV, Some(c"mode=0755"))
        .with_context(|| format!("mounting a tmpfs at {}", tmpfs.display()))?;
    write_own_pid(pid_file)?;
    hold_until_stdin_closes()?;
    leave(tmpfs)
}

/// The harness is gone, or done: nothing of the node may stay, also if nobody is left to clean up.
fn leave(tmpfs: &Path) -> Result<()> {
    // -1: every process of the namespace but this one. None may be left, which is no failure.
    let _ = rustix::process::kill_process_group(rustix::process::Pid::INIT, rustix::process::Signal::KILL);
    rustix::mount::unmount(tmpfs, UnmountFlags::DETACH)?;
    let work = tmpfs.parent().context("the tmpfs has no parent")?;
    fs::remove_dir_all(work).with_context(|| format!("removing {}", work.display()))
}

/// Keeps a pod's network, UTS and IPC namespaces alive, as the pause container does.
fn pause(hostname: &str, pid_file: &Path) -> Result<()> {
    rustix::system::sethostname(hostname.as_bytes()).context("setting the host name")?;
    write_own_pid(pid_file)?;
    hold_until_stdin_closes()
}

/// The harness holds the other end of our standard input: the kernel closes it when the harness dies, however it dies.
fn hold_until_stdin_closes() -> Result<()> {
    let mut sink = Vec::new();
    io::stdin().read_to_end(&mut sink).context("waiting for the harness")?;
    Ok(())
}

/// `/proc` is still the machine's here, so it names this process by its id there.
fn write_own_pid(pid_file: &Path) -> Result<()> {
    let pid = fs::read_link("/proc/self").context("reading /proc/self")?;
    let fresh = pid_file.with_extension("new");
    fs::write(&fresh, pid.as_os_str().as_encoded_bytes())?;
    fs::rename(&fresh, pid_file).with_context(|| format!("writing {}", pid_file.display()))
}

fn container(spec: &Path) -> Result<()> {
    let text = fs::read(spec).with_context(|| format!("reading {}", spec.display()))?;
    let spec: ContainerSpec =
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", spec.display()))?;
    write_own_pid(&spec.pid_file)?;
    let merged = mount_root(&spec)?;
    for bind in &spec.binds {
        mount_bind(&merged, bind).with_context(|| format!("mounting {}", bind.target.display()))?;
    }
    if spec.read_only {
        rustix::mount::mount_remount(&merged, MountFlags::BIND | MountFlags::RDONLY, c"")
            .context("making the root read-only")?;
    }
    enter_root(&merged)?;
    rustix::process::chdir(&spec.cwd).with_context(|| format!("working directory {}", spec.cwd.display()))?;
    drop_privileges(&spec.user, spec.capabilities).context("dropping privileges")?;
    if spec.no_new_privs {
        rustix::thread::set_no_new_privs(true).context("setting no_new_privs")?;
    }
    let Some((program, args)) = spec.argv.split_first() else {
        bail!("the container has neither a command nor an entrypoint");
    };
    let failed = Command::new(program).args(args).env_clear().envs(spec.env).exec();
    Err(failed).with_context(|| format!("starting {program}"))
}

/// The image's layers over the machine's own root, and everything written goes to the node's tmpfs.
fn mount_root(spec: &ContainerSpec) -> Result<PathBuf> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("making mounts private")?;
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| spec.root.join(name));
    for directory in [&upper, &work, &merged] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let lower: Vec<String> =
        spec.layers.iter().map(|layer| layer.display().to_string()).chain(["/".into()]).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let options = CString::new(options)?;
    rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .context("mounting the container's overlay")?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", merged.join("proc"), "proc", quiet, None).context("mounting /proc")?;
    rustix::mount::mount("sysfs", merged.join("sys"), "sysfs", quiet | MountFlags::RDONLY, None)
        .context("mounting /sys")?;
    mount_dev(&merged.join("dev")).context("populating /dev")?;
    Ok(merged)
}

fn mount_dev(dev: &Path) -> Result<()> {
    rustix::mount::mount("dev", dev, "tmpfs", MountFlags::NOSUID, Some(c"mode=0755"))?;
    for node in ["null", "zero", "full", "random", "urandom", "tty"] {
        fs::write(dev.join(node), b"")?;
        rustix::mount::mount_bind(Path::new("/dev").join(node), dev.join(node))?;
    }
    for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")] {
        symlink(to, dev.join(link))?;
    }
    for (link, to) in [("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")] {
        symlink(to, dev.join(link))?;
    }
    fs::create_dir(dev.join("shm"))?;
    fs::set_permissions(dev.join("shm"), fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

fn mount_bind(root: &Path, bind: &Bind) -> Result<()> {
    let target = within(root, &bind.target)?;
    if bind.source.is_dir() {
        if target.is_symlink() {
            fs::remove_file(&target)?;
        }
        fs::create_dir_all(&target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        if target.is_symlink() {
            fs::remove_file(&target)?;
        }
        if !target.exists() {
            fs::write(&target, b"")?;
        }
    }
    rustix::mount::mount_bind(&bind.source, &target)
        .with_context(|| format!("from {}", bind.source.display()))?;
    if bind.read_only {
        rustix::mount::mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

/// Where a path of the container is, seen from outside of its root. Links (as `/var/run` is one) are followed within
/// the root: followed by the kernel, an absolute one would lead out to the machine's own files.
fn within(root: &Path, path: &Path) -> Result<PathBuf> {
    // The kernel's own limit (path_resolution(7)).
    let mut links = 40;
    let mut todo: Vec<PathBuf> = parts(path);
    let mut found = PathBuf::new();
    while let Some(part) = todo.pop() {
        if part == Path::new("..") {
            found.pop();
            continue;
        }
        let here = root.join(&found).join(&part);
        let is_last = todo.is_empty();
        match fs::read_link(&here) {
            // The target itself is replaced rather than followed.
            Ok(link) if !is_last => {
                links -= 1;
                if links == 0 {
                    bail!("{} has too many links", path.display());
                }
                if link.is_absolute() {
                    found = PathBuf::new();
                }
                todo.extend(parts(&link));
            }
            _ => found.push(part),
        }
    }
    Ok(root.join(found))
}

/// The names of a path, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    use std::path::Component::{Normal, ParentDir};
    let names = path.components().filter(|part| matches!(part, Normal(_) | ParentDir));
    names.map(|part| PathBuf::from(part.as_os_str())).rev().collect()
}

fn enter_root(merged: &Path) -> Result<()> {
    rustix::process::chdir(merged)?;
    rustix::process::pivot_root(".", ".").context("pivoting into the container's root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("leaving the machine's root")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// As runc does: bounding, permitted and effective hold what was asked, inheritable and ambient hold nothing. What a
/// process of another user keeps past `exec` is then up to the file capabilities of what it starts.
fn drop_privileges(user: &User, capabilities: u64) -> Result<()> {
    let keep = CapabilitySet::from_bits_retain(capabilities);
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // An error means that the kernel has no capability of that number.
        if !keep.contains(one) && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    rustix::thread::set_keep_capabilities(true)?;
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)?;
    // What this machine's root lacks cannot be handed on.
    let possible = rustix::thread::capabilities(None)?.permitted;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: keep & possible,
            permitted: keep & possible,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
