//! What a pod's volumes hold, and how it is put on disk.
//!
//! [`content`] decides from manifests alone; [`write()`] replaces the files of a volume at once, with the `..data` link
//! that a kubelet uses, so that a process that watches a ConfigMap sees it change in one step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};

use crate::environment::{Lookup, field_ref, resource_ref};
use crate::token::{API_AUDIENCE, TokenSigner};

/// Seconds that a projected token lives where the manifest does not say.
const TOKEN_SECONDS: u64 = 3600;

/// The path by which a pod of the control plane asks for the node's directory of live manifests (a `hostPath`).
pub const MANIFESTS_HOST_PATH: &str = "/var/lib/remora/manifests";

/// What a volume is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A scratch directory.
    Empty,
    /// Files by their path within the volume.
    Files(BTreeMap<PathBuf, File>),
    /// The node's directory of live manifests.
    Manifests,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Everything that the content of a volume may depend on.
pub struct Sources<'a> {
    pub pod: &'a Pod,
    pub lookup: &'a dyn Lookup,
    pub tokens: &'a TokenSigner,
    /// Unix seconds.
    pub now: u64,
}

/// What `volume` holds now.
///
/// # Errors
/// A kind of volume that the harness does not have, or a ConfigMap, Secret or key that is missing and not optional.
pub fn content(volume: &Volume, from: &Sources<'_>) -> Result<Content> {
    let what = || format!("volume {}", volume.name);
    let mut files = BTreeMap::new();
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    } else if let Some(map) = &volume.config_map {
        let keys =
            Keys { what: "ConfigMap", name: &map.name, items: map.items.as_deref(), optional: map.optional };
        keys.take(from, mode(map.default_mode), &mut files).with_context(what)?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let keys = Keys { what: "Secret", name, items: secret.items.as_deref(), optional: secret.optional };
        keys.take(from, mode(secret.default_mode), &mut files).with_context(what)?;
    } else if let Some(downward) = &volume.downward_api {
        downward_api(downward.items.as_deref(), from, mode(downward.default_mode), &mut files)
            .with_context(what)?;
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            projection(source, from, mode(projected.default_mode), &mut files).with_context(what)?;
        }
    } else if volume.host_path.as_ref().is_some_and(|host| host.path == MANIFESTS_HOST_PATH) {
        return Ok(Content::Manifests);
    } else {
        bail!(
            "volume {} is of a kind that the harness does not have (it has emptyDir, configMap, secret, downwardAPI, \
             projected, and the hostPath {MANIFESTS_HOST_PATH})",
            volume.name
        );
    }
    Ok(Content::Files(files))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}

struct Keys<'a> {
    what: &'static str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
}

impl Keys<'_> {
    fn take(&self, from: &Sources<'_>, mode: u32, files: &mut BTreeMap<PathBuf, File>) -> Result<()> {
        let namespace = from.pod.metadata.namespace.as_deref().unwrap_or("default");
        let found = match self.what {
            "Secret" => from.lookup.secret(namespace, self.name),
            _ => from.lookup.config_map(namespace, self.name),
        };
        let optional = self.optional == Some(true);
        let Some(found) = found else {
            if optional {
                return Ok(());
            }
            bail!("there is no {} {namespace}/{}", self.what, self.name);
        };
        let Some(items) = self.items else {
            files.extend(found.into_iter().map(|(key, bytes)| (key.into(), File { bytes, mode })));
            return Ok(());
        };
        for item in items {
            match found.get(&item.key) {
                Some(bytes) => {
                    let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
                    files.insert(inside(&item.path)?, File { bytes: bytes.clone(), mode });
                }
                None if optional => {}
                None => bail!("{} {namespace}/{} has no key {}", self.what, self.name, item.key),
            }
        }
        Ok(())
    }
}

fn downward_api(
    items: Option<&[DownwardAPIVolumeFile]>,
    from: &Sources<'_>,
    mode: u32,
    files: &mut BTreeMap<PathBuf, File>,
) -> Result<()> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_ref(from.pod, field)?,
            (None, Some(resource)) => {
                let containers =
                    from.pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
                let named = resource.container_name.as_deref().unwrap_or_default();
                let container = containers.iter().find(|container| container.name == named);
                resource_ref(
                    container.with_context(|| format!("there is no container {named:?}"))?,
                    resource,
                )?
            }
            (None, None) => bail!("item {} names neither a field nor a resource", item.path),
        };
        let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
        files.insert(inside(&item.path)?, File { bytes: text.into_bytes(), mode });
    }
    Ok(())
}

fn projection(
    source: &VolumeProjection,
    from: &Sources<'_>,
    mode: u32,
    files: &mut BTreeMap<PathBuf, File>,
) -> Result<()> {
    if let Some(map) = &source.config_map {
        let keys =
            Keys { what: "ConfigMap", name: &map.name, items: map.items.as_deref(), optional: map.optional };
        keys.take(from, mode, files)
    } else if let Some(secret) = &source.secret {
        let items = secret.items.as_deref();
        Keys { what: "Secret", name: &secret.name, items, optional: secret.optional }.take(from, mode, files)
    } else if let Some(downward) = &source.downward_api {
        downward_api(downward.items.as_deref(), from, mode, files)
    } else if let Some(token) = &source.service_account_token {
        let seconds = token.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let audience = token.audience.as_deref().unwrap_or(API_AUDIENCE);
        let signed = from.tokens.sign(from.pod, audience, from.now, seconds.unwrap_or(TOKEN_SECONDS))?;
        let file = File { bytes: signed.into_bytes(), mode: token_mode(from.pod, mode) };
        files.insert(inside(&token.path)?, file);
        Ok(())
    } else {
        bail!("a projected source is of a kind that the harness does not have")
    }
}

/// The kubelet narrows a token's mode where it knows whom to give the file to.
fn token_mode(pod: &Pod, mode: u32) -> u32 {
    if fs_group(pod).is_some() || only_user(pod).is_some() { 0o600 } else { mode }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let security = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(security.fs_group?).ok()
}

/// The one user as which every container runs, where manifests say so.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|security| security.run_as_user);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = containers.map(|container| {
        container.security_context.as_ref().and_then(|security| security.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// A path that stays within the volume.
fn inside(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) && path.file_name().is_some() {
        return Ok(path);
    }
    bail!("{} is not a relative path within the volume", path.display())
}

/// Makes the directory of a volume for this pod, or replaces what it holds.
pub fn write(directory: &Path, content: &Content, pod: &Pod) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    match content {
        Content::Manifests => {}
        Content::Empty => {
            let mode = if fs_group(pod).is_some() { 0o2777 } else { 0o777 };
            chown(directory, None, fs_group(pod))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(mode))?;
        }
        Content::Files(files) => write_files(directory, files, pod)?,
    }
    Ok(())
}

fn write_files(directory: &Path, files: &BTreeMap<PathBuf, File>, pod: &Pod) -> Result<()> {
    let data = directory.join("..data");
    let old = fs::read_link(&data).ok();
    let fresh = format!("..{}", crate::token::unique_id()?);
    let versioned = directory.join(&fresh);
    fs::create_dir(&versioned)?;
    for (path, file) in files {
        let place = versioned.join(path);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&place, &file.bytes)?;
        let group = fs_group(pod);
        // SetVolumeOwnership of the kubelet: the group may read what the owner may.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        chown(&place, only_user(pod).filter(|_| file.mode == 0o600), group)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
    }
    let link = directory.join("..data_new");
    symlink(&fresh, &link)?;
    fs::rename(&link, &data)?;
    for path in files.keys() {
        let Some(Component::Normal(top)) = path.components().next() else { continue };
        if !directory.join(top).is_symlink() {
            symlink(Path::new("..data").join(top), directory.join(top))?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // A link whose file is gone from the new version.
        if path.is_symlink() && !path.exists() {
            fs::remove_file(path)?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(directory.join(old))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Name, World, config_map, secret};
    use serde_json::json;

    #[test]
    fn a_config_map_is_one_file_for_each_key_and_changes_at_once() {
        let place = tempfile::tempdir().unwrap();
        let volume = json!({"name": "v", "configMap": {"name": "conf"}});
        write(place.path(), &files(&volume, &[("a", "1"), ("b", "2")]), &pod()).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("a")).unwrap(), "1");
        write(place.path(), &files(&volume, &[("a", "new")]), &pod()).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("a")).unwrap(), "new");
        assert!(!place.path().join("b").is_symlink(), "a removed key leaves a link behind");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3, "a, ..data and one version");
    }

    #[test]
    fn items_choose_keys_and_paths() {
        let volume = json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "a", "path": "x/y", "mode": 256}]}});
        let Content::Files(files) = files(&volume, &[("a", "1"), ("b", "2")]) else { panic!("not files") };
        assert_eq!(files, BTreeMap::from([("x/y".into(), File { bytes: b"1".to_vec(), mode: 0o400 })]));
    }

    #[test]
    fn a_path_never_leaves_the_volume() {
        for path in ["../x", "/x", "a/../../x", ""] {
            assert!(inside(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_missing_secret_is_an_error_that_names_it_unless_optional() {
        let missing = |optional| json!({"name": "v", "secret": {"secretName": "gone", "optional": optional}});
        let error = try_content(&missing(false), &World::default()).unwrap_err();
        assert!(format!("{error:#}").contains("no Secret n/gone"), "{error:#}");
        assert_eq!(try_content(&missing(true), &World::default()).unwrap(), Content::Files(BTreeMap::new()));
    }

    #[test]
    fn a_kind_of_volume_that_is_not_there_is_refused() {
        for volume in [
            json!({"name": "v", "hostPath": {"path": "/etc"}}),
            json!({"name": "v", "nfs": {"path": "/", "server": "x"}}),
        ] {
            assert!(try_content(&volume, &World::default()).is_err(), "{volume}");
        }
    }

    #[test]
    fn a_projected_volume_joins_its_sources() {
        let mut world = World::default();
        world.put(secret(&Name::new("n", "s"), &[("key", b"k")]));
        let volume = json!({"name": "v", "projected": {"sources": [
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "audience": "a", "expirationSeconds": 600}},
        ]}});
        let Content::Files(files) = try_content(&volume, &world).unwrap() else { panic!("not files") };
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            [Path::new("key"), Path::new("name"), Path::new("token")]
        );
        assert_eq!(files[Path::new("name")].bytes, b"p");
    }

    fn files(volume: &serde_json::Value, data: &[(&str, &str)]) -> Content {
        let mut world = World::default();
        world.put(config_map(&Name::new("n", "conf"), data));
        try_content(volume, &world).unwrap()
    }

    fn try_content(volume: &serde_json::Value, world: &World) -> Result<Content> {
        let volume: Volume = serde_json::from_value(volume.clone()).unwrap();
        let tokens = TokenSigner::generate().unwrap();
        content(&volume, &Sources { pod: &pod(), lookup: world, tokens: &tokens, now: 1_800_000_000 })
    }

    fn pod() -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": []}}),
        )
        .unwrap()
    }
}
