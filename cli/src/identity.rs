//! `remora identity generate`: the root and the issuer that `remora-identity` signs with, as files.

use anyhow::{Context, bail};
use clap::Subcommand;
use remora_identity::generate::{Generated, Plan, generate_now, lifetime};
use serde_json::json;
use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use crate::{Format, print};

/// Keys and certificates of the mesh's authority.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Clone, Debug)]
enum Verb {
    /// Make a root and an issuer signed by it (ECDSA P-256).
    ///
    /// Writes ca.crt (the trust anchors), crt.pem and key.pem (the issuer, as --issuer-dir of remora-identity wants
    /// them). The root's key is thrown away unless it is asked for: whoever has it can be anybody on the mesh.
    Generate(GenerateArgs),
}

#[derive(clap::Args, Clone, Debug)]
struct GenerateArgs {
    /// Folder to write to; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    trust_domain: String,
    /// Namespace of the control plane.
    #[arg(long, default_value = "remora", value_name = "NAMESPACE")]
    control_namespace: String,
    /// How long the issuer holds: an integer followed by s, m, h or d.
    #[arg(long, default_value = "365d", value_name = "DURATION", value_parser = lifetime)]
    lifetime: Duration,
    /// How long the root holds.
    #[arg(long, default_value = "3650d", value_name = "DURATION", value_parser = lifetime)]
    root_lifetime: Duration,
    /// Also write the root's key, as ca.key: to sign the next issuer with, and to be kept elsewhere.
    #[arg(long)]
    with_root_key: bool,
    /// Replace files that are there.
    #[arg(long)]
    force: bool,
    /// How to say what was written.
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

/// Runs the verb; what was written goes to standard output.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Verb::Generate(args) = args.verb;
    let plan = Plan {
        trust_domain: args.trust_domain.clone(),
        control_namespace: args.control_namespace.clone(),
        root_lifetime: args.root_lifetime,
        issuer_lifetime: args.lifetime,
    };
    let made = generate_now(&plan)?;
    let files = write(&args, &made)?;
    let report = match args.output {
        Format::Text => text(&files),
        Format::Json => {
            format!("{:#}\n", json!({ "files": files.iter().map(Written::json).collect::<Vec<_>>() }))
        }
    };
    Ok(print(&report))
}

/// A file, and until when what it holds is good.
struct Written {
    path: PathBuf,
    what: &'static str,
    expires: Option<u64>,
}

impl Written {
    fn json(&self) -> serde_json::Value {
        json!({ "path": self.path, "what": self.what, "expires": self.expires.map(date) })
    }
}

fn write(args: &GenerateArgs, made: &Generated) -> anyhow::Result<Vec<Written>> {
    let (root_ends, issuer_ends) = (made.root_expires.0.as_secs(), made.issuer_expires.0.as_secs());
    let mut files = vec![
        ("ca.crt", "trust anchors", &made.root, Some(root_ends), 0o644),
        ("crt.pem", "issuer certificate", &made.issuer, Some(issuer_ends), 0o644),
        ("key.pem", "issuer key", &made.issuer_key, None, 0o600),
    ];
    if args.with_root_key {
        files.push(("ca.key", "root key", &made.root_key, None, 0o600));
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    if !args.force {
        let there: Vec<&str> =
            files.iter().map(|file| file.0).filter(|name| args.out.join(name).exists()).collect();
        if !there.is_empty() {
            bail!(
                "{} already holds {}; --force replaces them, and certificates issued with the old key are then refused",
                args.out.display(),
                there.join(", ")
            );
        }
    }
    let mut written = Vec::new();
    for (name, what, text, expires, mode) in files {
        let path = args.out.join(name);
        replace(&path, text.as_bytes(), mode).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(Written { path, what, expires });
    }
    Ok(written)
}

/// By rename, so that a process that follows the folder never reads half a file.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    // A file left over may have another mode, and the umask takes bits away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

fn text(files: &[Written]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for file in files {
        let until = file.expires.map_or_else(String::new, |expires| format!(", until {}", date(expires)));
        // Writing into a String does not fail.
        let _ = writeln!(text, "{}  ({}{until})", file.path.display(), file.what);
    }
    text
}

/// `2027-11-23T08:00:00Z`, by the calendar of RFC 3339. Days to date: Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", civil_from_days.
fn date(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_written_is_an_issuer_and_never_the_roots_key_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/folder");
        generate_into(&out, &[]).unwrap();
        let mode = |name: &str| fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.crt"), mode("crt.pem"), mode("key.pem")), (0o644, 0o644, 0o600));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing else");
        assert!(fs::read_to_string(out.join("key.pem")).unwrap().contains("PRIVATE KEY"));
    }

    #[test]
    fn the_roots_key_is_written_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        generate_into(dir.path(), &["--with-root-key"]).unwrap();
        assert_eq!(fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_replaced_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let read = || fs::read(dir.path().join("ca.crt")).unwrap();
        generate_into(dir.path(), &[]).unwrap();
        let first = read();
        let refused = generate_into(dir.path(), &[]).unwrap_err().to_string();
        assert!(refused.contains("already holds ca.crt, crt.pem, key.pem; --force"), "{refused}");
        assert_eq!(read(), first);
        generate_into(dir.path(), &["--force"]).unwrap();
        assert_ne!(read(), first);
    }

    #[test]
    fn lifetimes_need_units() {
        let parsed = Cli::try_parse_from(["identity", "generate", "--out", "x", "--lifetime", "365"]);
        assert!(parsed.map(|_| ()).unwrap_err().to_string().contains("--lifetime"));
    }

    #[test]
    fn dates_are_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(date(1_900_000_000), "2030-03-17T17:46:40Z");
        assert_eq!(date(253_402_300_799), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn the_text_says_until_when() {
        let files = [Written { path: "out/ca.crt".into(), what: "trust anchors", expires: Some(0) }];
        assert_eq!(text(&files), "out/ca.crt  (trust anchors, until 1970-01-01T00:00:00Z)\n");
    }

    fn generate_into(out: &Path, flags: &[&str]) -> anyhow::Result<ExitCode> {
        let out = out.to_str().unwrap();
        let cli = Cli::try_parse_from([&["identity", "generate", "--out", out], flags].concat())?;
        run(cli.args)
    }
}
