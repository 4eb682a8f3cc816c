//! From a container of a manifest to the process to start: user, groups, capabilities, mounts, command.
//!
//! Pure: the rules of a kubelet and of runc, without either.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Capabilities, Container, Pod};

use crate::image::Image;
use crate::spec::{Bind, ContainerSpec, User};

/// Where the node keeps what belongs to one start of a container. All paths as the node's mount namespace has them.
pub struct Places {
    /// For this start of this container alone.
    pub root: PathBuf,
    /// The directory that holds a directory for each volume.
    pub volumes: PathBuf,
    /// `resolv.conf`, `hosts` and `hostname` of the pod.
    pub etc: PathBuf,
    /// The node's directory of live manifests, for volumes that are it.
    pub manifests: PathBuf,
    pub pid_file: PathBuf,
}

/// The capabilities of a container that asks for nothing (those of containerd and Docker).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability by the kernel's numbers (`linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The process for one container.
///
/// # Errors
/// What a kubelet would refuse as well: a container that must not be root and is, an unknown capability, a mount of a
/// volume that the pod does not have.
pub fn spec(
    pod: &Pod,
    container: &Container,
    image: &Image,
    env: Vec<(String, String)>,
    places: &Places,
) -> Result<ContainerSpec> {
    let security = container.security_context.clone().unwrap_or_default();
    let user = user(pod, container, &image.user)?;
    let expand = |words: Option<&Vec<String>>| {
        let values = env.iter().cloned().collect();
        words.map(|words| {
            words.iter().map(|word| crate::environment::expand(word, &values)).collect::<Vec<_>>()
        })
    };
    let argv =
        image.argv(expand(container.command.as_ref()).as_deref(), expand(container.args.as_ref()).as_deref());
    if argv.is_empty() {
        bail!("container {} has no command, and its image has none either", container.name);
    }
    let privileged = security.privileged == Some(true);
    let capabilities = if privileged { u64::MAX } else { capabilities(security.capabilities.as_ref())? };
    Ok(ContainerSpec {
        root: places.root.clone(),
        layers: image.layers.clone(),
        read_only: security.read_only_root_filesystem == Some(true),
        binds: binds(pod, container, image, places)?,
        argv,
        cwd: container.working_dir.as_deref().unwrap_or("/").into(),
        env,
        user,
        capabilities,
        // Kubernetes allows escalation unless told otherwise, and always to whom could do anything anyway.
        no_new_privs: security.allow_privilege_escalation == Some(false) && !privileged,
        pid_file: places.pid_file.clone(),
    })
}

fn user(pod: &Pod, container: &Container, image: &User) -> Result<User> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |id: i64| u32::try_from(id).with_context(|| format!("{id} is not a user or group id"));
    let asked = own.run_as_user.or(of_pod.run_as_user).map(id).transpose()?;
    let uid = asked.unwrap_or(image.uid);
    let gid = match own.run_as_group.or(of_pod.run_as_group) {
        Some(group) => id(group)?,
        // Without a group, a user that the image does not know gets group 0.
        None if asked.is_some_and(|asked| asked != image.uid) => 0,
        None => image.gid,
    };
    if uid == 0 && own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        bail!("container {} must not run as root (runAsNonRoot), but its user is 0", container.name);
    }
    let mut groups: Vec<u32> = of_pod
        .fs_group
        .into_iter()
        .chain(of_pod.supplemental_groups.unwrap_or_default())
        .map(id)
        .collect::<Result<_>>()?;
    groups.extend(&image.groups);
    Ok(User { uid, gid, groups })
}

/// The default set, less `drop`, plus `add`; `ALL` is every capability.
pub fn capabilities(asked: Option<&Capabilities>) -> Result<u64> {
    let mut set = mask(DEFAULT_CAPABILITIES)?;
    let Some(asked) = asked else { return Ok(set) };
    let named = |names: Option<&Vec<String>>| mask(names.into_iter().flatten());
    set &= !named(asked.drop.as_ref())?;
    Ok(set | named(asked.add.as_ref())?)
}

fn mask(names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<u64> {
    let mut mask = 0;
    for name in names {
        let name = name.as_ref();
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        mask |= match CAPABILITIES.iter().position(|known| *known == bare) {
            _ if bare == "ALL" => u64::MAX,
            Some(bit) => 1 << bit,
            None => bail!("{name} is not a capability"),
        };
    }
    Ok(mask)
}

fn binds(pod: &Pod, container: &Container, image: &Image, places: &Places) -> Result<Vec<Bind>> {
    let mut binds = image.binds.clone();
    for file in ["resolv.conf", "hosts", "hostname"] {
        binds.push(Bind {
            source: places.etc.join(file),
            target: Path::new("/etc").join(file),
            read_only: true,
        });
    }
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let mut mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
    // A mount within another mount is made after it.
    mounts.sort_by_key(|mount| mount.mount_path.clone());
    for mount in mounts {
        let volume = volumes.into_iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| {
            format!("container {} mounts {}, but the pod has no such volume", container.name, mount.name)
        })?;
        let mut source = places.volumes.join(&mount.name);
        let mut always_read_only = volume.empty_dir.is_none();
        if volume.host_path.is_some() {
            source.clone_from(&places.manifests);
            always_read_only = true;
        }
        if let Some(part) = &mount.sub_path {
            source.push(part);
        }
        binds.push(Bind {
            source,
            target: mount.mount_path.clone().into(),
            read_only: always_read_only || mount.read_only == Some(true),
        });
    }
    Ok(binds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_init_container_gets_exactly_the_two_capabilities_it_asks_for() {
        let asked = Capabilities {
            add: Some(vec!["NET_ADMIN".into(), "NET_RAW".into()]),
            drop: Some(vec!["ALL".into()]),
        };
        assert_eq!(capabilities(Some(&asked)).unwrap(), 1 << 12 | 1 << 13);
    }

    #[test]
    fn without_a_wish_the_default_set_is_given() {
        assert_eq!(
            capabilities(None).unwrap(),
            0xa804_25fb,
            "as /proc/self/status shows in a container of containerd"
        );
    }

    #[test]
    fn an_unknown_capability_is_refused_by_name() {
        let asked = Capabilities { add: Some(vec!["NET_ADMN".into()]), drop: None };
        assert!(capabilities(Some(&asked)).unwrap_err().to_string().contains("NET_ADMN"));
    }

    #[test]
    fn the_container_is_asked_before_the_pod_and_the_pod_before_the_image() {
        for (pod, container, expected) in [
            (json!({}), json!({}), (7, 8)),
            (json!({"runAsUser": 1}), json!({}), (1, 0)),
            (json!({"runAsUser": 1, "runAsGroup": 2}), json!({"runAsUser": 3}), (3, 2)),
            (json!({"runAsUser": 7}), json!({}), (7, 8)),
        ] {
            let built = build(&pod, &container, &json!([])).unwrap();
            assert_eq!((built.user.uid, built.user.gid), expected, "{pod} {container}");
        }
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        assert!(build(&json!({"runAsNonRoot": true}), &json!({"runAsUser": 0}), &json!([])).is_err());
    }

    #[test]
    fn the_groups_of_the_pod_are_supplementary() {
        let built = build(&json!({"fsGroup": 5, "supplementalGroups": [6]}), &json!({}), &json!([])).unwrap();
        assert_eq!(built.user.groups, [5, 6]);
    }

    #[test]
    fn escalation_is_allowed_unless_forbidden() {
        assert!(!build(&json!({}), &json!({}), &json!([])).unwrap().no_new_privs);
        assert!(
            build(&json!({}), &json!({"allowPrivilegeEscalation": false}), &json!([])).unwrap().no_new_privs
        );
    }

    #[test]
    fn configuration_volumes_are_read_only_and_scratch_is_not() {
        let mounts = json!([{"name": "scratch", "mountPath": "/s"}, {"name": "conf", "mountPath": "/c", "subPath": "k"}]);
        let built = build(&json!({}), &json!({}), &mounts).unwrap();
        let at = |path: &str| built.binds.iter().find(|bind| bind.target == Path::new(path)).unwrap().clone();
        assert!(!at("/s").read_only);
        assert!(at("/c").read_only);
        assert_eq!(at("/c").source, Path::new("/volumes/conf/k"));
    }

    #[test]
    fn a_mount_of_no_volume_is_refused() {
        assert!(build(&json!({}), &json!({}), &json!([{"name": "none", "mountPath": "/x"}])).is_err());
    }

    fn build(
        pod: &serde_json::Value,
        container: &serde_json::Value,
        mounts: &serde_json::Value,
    ) -> Result<ContainerSpec> {
        let volumes =
            json!([{"name": "scratch", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "c"}}]);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"}, "spec": {"containers": [], "securityContext": pod, "volumes": volumes}
        }))
        .unwrap();
        let container: Container = serde_json::from_value(json!({
            "name": "c", "command": ["true"], "securityContext": container, "volumeMounts": mounts
        }))
        .unwrap();
        let image = Image { user: User { uid: 7, gid: 8, groups: vec![] }, ..Image::default() };
        let places = Places {
            root: "/root".into(),
            volumes: "/volumes".into(),
            etc: "/etc-of-pod".into(),
            manifests: "/manifests".into(),
            pid_file: "/pid".into(),
        };
        spec(&pod, &container, &image, Vec::new(), &places)
    }
}
