//! What the machine leaves a process: descriptors and memory, and whether there is room for more.
//!
//! Memory is looked at as work comes in, not by a timer alone: whoever reads says how much, and after each share of the
//! limit the resident set is looked at again. So what was let in between two looks is bounded, however fast it came.

use remora_core::room::{Pressure, pressure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What may be read between two looks, as a share of the limit: 256 KiB of 64 MiB.
const SHARE: u64 = 256;

/// Between two looks when nothing is read: after a burst, memory goes back to the system in seconds.
pub const AGAIN: Duration = Duration::from_millis(250);

/// Larger limits than this are none: version 1 of cgroups says 2^63 less a page.
const NO_LIMIT: u64 = 1 << 60;

/// Raises the limit of open descriptors as far as the process may, and returns it; `None` where there is none.
pub fn descriptors() -> Option<u64> {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    // What cannot be raised stays as it is.
    if setrlimit(Resource::Nofile, raised).is_ok() { now.maximum } else { now.current }
}

/// The memory that this process's control group may use, in bytes, of either version; `None` where nothing limits it.
pub fn cgroup_memory() -> Option<u64> {
    limit_below(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

/// The smallest limit of the groups in `own` (cgroups(7), `/proc/pid/cgroup`) and of those above them. In a container
/// the root of the mount is usually the group itself, whatever its name is outside.
fn limit_below(mount: &Path, own: &str) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => Some((mount.to_owned(), "memory.max", path)),
            _ if controllers.split(',').any(|one| one == "memory") => {
                Some((mount.join("memory"), "memory.limit_in_bytes", path))
            }
            _ => None,
        }
    });
    groups.flat_map(|(root, file, path)| limits(&root, file, path)).min()
}

fn limits(root: &Path, file: &str, path: &str) -> Vec<u64> {
    let relative = Path::new(path.trim_start_matches('/'));
    let folders = relative.ancestors().map(|part| root.join(part));
    folders.filter_map(|folder: PathBuf| read_limit(&folder.join(file))).collect()
}

fn read_limit(file: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < NO_LIMIT).then_some(limit)
}

/// The memory of a process against its limit.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    resident: fn() -> Option<u64>,
    used: AtomicU64,
    pressure: AtomicU8,
    unlooked: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
}

static MEMORY: OnceLock<Memory> = OnceLock::new();

/// From now on this process has a limit. The first limit that is said holds.
pub fn limit_memory(limit: u64) -> &'static Memory {
    MEMORY.get_or_init(|| Memory::new(limit, resident))
}

/// The memory of this process, if it has a limit.
pub fn memory() -> Option<&'static Memory> {
    MEMORY.get()
}

/// Says that bytes came in from a network.
///
/// # Errors
/// There is no room for what they belong to: the connection ends.
pub fn took(bytes: usize) -> io::Result<()> {
    match MEMORY.get() {
        Some(memory) => memory.took(bytes),
        None => Ok(()),
    }
}

impl Memory {
    fn new(limit: u64, resident: fn() -> Option<u64>) -> Self {
        let memory = Self {
            limit,
            resident,
            used: AtomicU64::new(0),
            pressure: AtomicU8::new(0),
            unlooked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        };
        memory.look();
        memory
    }

    /// Looks at the resident set. A few microseconds.
    pub fn look(&self) {
        self.unlooked.store(0, Relaxed);
        let Some(used) = (self.resident)() else { return };
        self.used.store(used, Relaxed);
        self.pressure.store(pressure(used, self.limit) as u8, Relaxed);
    }

    /// [`took`].
    fn took(&self, bytes: usize) -> io::Result<()> {
        let bytes = bytes as u64;
        if self.unlooked.fetch_add(bytes, Relaxed).saturating_add(bytes) >= self.limit / SHARE {
            self.look();
        }
        if bytes > 0 && self.pressure() == Pressure::Critical {
            self.cut.fetch_add(1, Relaxed);
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the process has used up its memory"));
        }
        Ok(())
    }

    /// As of the last look.
    pub fn pressure(&self) -> Pressure {
        match self.pressure.load(Relaxed) {
            0 => Pressure::Low,
            1 => Pressure::High,
            _ => Pressure::Critical,
        }
    }

    /// Something new was refused because pressure is high.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Bytes that were resident at the last look.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes that the process may use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How often something new was refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// How many connections were ended as they sent.
    pub fn cut(&self) -> u64 {
        self.cut.load(Relaxed)
    }
}

/// The second field of proc_pid_statm(5), in bytes.
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    static RESIDENT: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn what_comes_in_is_followed_by_a_look_and_cut_off_before_the_limit_is_reached() {
        let memory = Memory::new(64 << 20, || Some(RESIDENT.load(Relaxed)));
        assert_eq!(memory.pressure(), Pressure::Low);
        // Everything that is read stays.
        let mut held = 0;
        let cut = loop {
            RESIDENT.store(held, Relaxed);
            match memory.took(16 << 10) {
                Ok(()) => held += 16 << 10,
                Err(error) => break error,
            }
            assert!(held < 64 << 20, "it would have been killed");
        };
        assert_eq!(cut.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!((memory.cut(), memory.pressure()), (1, Pressure::Critical));
        RESIDENT.store(0, Relaxed);
        memory.look();
        memory.took(1).unwrap();
    }

    #[test]
    fn this_process_sees_its_own_memory() {
        assert!(resident().is_some_and(|bytes| bytes > 100_000));
    }

    #[test]
    fn the_limit_is_found_in_either_version_and_above_the_own_group() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = mount.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let found = |own: &str| limit_below(mount.path(), own);
        assert_eq!(found("0::/kubepods/pod1/proxy\n"), None, "nothing is mounted");
        write("memory.max", "max\n");
        write("kubepods/pod1/memory.max", "134217728\n");
        write("kubepods/pod1/proxy/memory.max", "67108864\n");
        assert_eq!(found("0::/kubepods/pod1/proxy\n"), Some(64 << 20));
        assert_eq!(found("0::/kubepods/pod1/app\n"), Some(128 << 20), "that of the pod");
        assert_eq!(found("0::/\n"), None, "max is no limit");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/pod1/memory.limit_in_bytes", "67108864\n");
        assert_eq!(found("4:memory:/pod1\n0::/\n"), Some(64 << 20));
        assert_eq!(found("4:cpu,memory:/pod2\n"), None);
        write("memory.max", "67108864\n");
        assert_eq!(
            found("0::/the/name/outside\n"),
            Some(64 << 20),
            "the root of a container's mount is its group"
        );
    }
}
