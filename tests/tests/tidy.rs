//! What this repository promises about itself: sizes, headers, purity, links, and pages that say what is there.
//!
//! It reads tracked files only, so work that is not committed yet disturbs nobody. Raise a limit here, with its reason,
//! rather than meet it by a trick.
#![expect(clippy::expect_used, reason = "a test says what it expects")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// Lines of a source file that are not blank, before its tests.
const LONGEST_FILE: usize = 400;
/// Longer files, with the reason.
const LONGER_FILES: [(&str, &str); 1] = [("runtime/src/proto.rs", "generated from runtime/proto/")];
/// The map is read in one sitting.
const LONGEST_MAP: usize = 250;

/// What a file that calls itself pure cannot name: waiting, the file system, sockets, the environment, clocks, dice.
const IMPURE: [&str; 12] = [
    "async ",
    ".await",
    "tokio::",
    "std::fs",
    "std::env",
    "std::process",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "now(",
    "fastrand::",
];

/// Modules of core that only hold values: nothing is decided there that a property could be stated about.
const VALUES_OF_CORE: [&str; 4] = ["endpoint", "planted", "profile", "time"];

#[test]
fn files_are_short_enough_to_be_read() {
    let mut long = vec![];
    for file in sources().filter(|file| !file.is_test()) {
        let lines = file.code().lines().filter(|line| !line.trim().is_empty()).count();
        let excepted = LONGER_FILES.iter().any(|(path, _reason)| *path == file.path);
        if lines > LONGEST_FILE && !excepted {
            long.push(format!("{}: {lines} lines before its tests, of {LONGEST_FILE}", file.path));
        }
    }
    none(&long);
}

#[test]
fn every_source_begins_by_saying_what_belongs_in_it() {
    none(&sources().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path).collect::<Vec<_>>());
}

#[test]
fn modules_are_named_after_themselves() {
    none(&sources().map(|file| file.path).filter(|path| path.ends_with("/mod.rs")).collect::<Vec<_>>());
}

#[test]
fn pure_files_are_pure() {
    let pure: Vec<File> = sources().filter(File::is_pure).collect();
    assert!(pure.len() > 20, "too few pure files were found: {}", pure.len());
    let mut impure = vec![];
    for file in pure {
        for (number, line) in file.code().lines().enumerate().filter(|(_, line)| !is_comment(line)) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                impure.push(format!("{}:{}: pure files have no {word:?}", file.path, number + 1));
            }
        }
    }
    none(&impure);
}

#[test]
fn the_sign_of_purity_is_seen_where_it_stands() {
    let file = |text: &str| File { path: "x/src/x.rs".into(), text: text.into() };
    assert!(file("//! Pure. What a pod becomes.\n").is_pure());
    assert!(file("//! What a pod becomes.\n//!\n//! Pure: nothing is looked up.\nuse x;\n").is_pure());
    assert!(!file("//! Pure but for `serve`.\n").is_pure());
    assert!(!file("//! What a pod becomes.\nuse x;\n//! Pure.\n").is_pure());
}

/// What only one file may do, in the sources of what we ship: the invariants of ARCHITECTURE.md that text can show.
#[test]
fn clocks_dice_and_environment_each_have_one_door() {
    let doors: [(&str, &[&str]); 6] = [
        ("SystemTime::now(", &["runtime/src/clock.rs"]),
        ("std::time::Instant::now(", &["runtime/src/clock.rs"]),
        ("fastrand::", &["runtime/src/clock.rs"]),
        ("env::var", &["runtime/src/env.rs"]),
        ("unbounded_channel", &[]),
        // Written by a generator.
        ("#[allow(", &["runtime/src/proto.rs"]),
    ];
    let mut wrong = vec![];
    let shipped = sources().filter(|file| !file.path.starts_with("tests/") && !file.is_test());
    for file in shipped {
        for (number, line) in file.code().lines().enumerate().filter(|(_, line)| !is_comment(line)) {
            for (word, doors) in doors {
                if line.contains(word) && !doors.contains(&file.path.as_str()) {
                    wrong.push(format!("{}:{}: {word} belongs in {doors:?}", file.path, number + 1));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_decision_of_core_has_a_property_test_or_a_fuzz_target() {
    let core: Vec<File> = sources().filter(|file| file.path.starts_with("core/src/")).collect();
    let lib = core.iter().find(|file| file.path == "core/src/lib.rs").expect("core has a lib.rs");
    let modules: Vec<&str> =
        lib.text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 10, "too few modules of core were found: {modules:?}");
    let fuzzed = tracked("fuzz/fuzz_targets/");
    let untested = modules.iter().filter(|module| !VALUES_OF_CORE.contains(module)).filter(|module| {
        let (itself, below) = (format!("core/src/{module}.rs"), format!("core/src/{module}/"));
        let has_target = fuzzed.contains(&format!("fuzz/fuzz_targets/{module}.rs"));
        let has_property = core.iter().any(|file| {
            (file.path == itself || file.path.starts_with(&below)) && file.text.contains("proptest!")
        });
        !has_target && !has_property
    });
    none(&untested.map(|module| format!("core::{module} has neither")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later_in_a_comment() {
    // Taken apart so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut left = vec![];
    for file in texts().filter(|file| !has_extension(&file.path, "lock")) {
        for (number, line) in file.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                left.push(format!("{}:{}: {line}", file.path, number + 1));
            }
        }
    }
    none(&left);
}

#[test]
fn no_file_knows_whose_machine_it_was_written_on() {
    let homes = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];
    let mut found = vec![];
    for file in texts() {
        for (number, line) in file.text.lines().enumerate() {
            for home in homes {
                // A path begins there: `spiffe://mesh/web` is not one.
                let begins = line.match_indices(home).any(|(at, _)| {
                    line.get(..at)
                        .and_then(|before| before.chars().next_back())
                        .is_none_or(|before| before.is_whitespace() || "\"'`=(<:,".contains(before))
                });
                if begins {
                    found.push(format!("{}:{}: {line}", file.path, number + 1));
                }
            }
        }
    }
    none(&found);
}

#[test]
fn every_relative_link_of_a_page_leads_somewhere() {
    let mut broken = vec![];
    let mut seen = 0;
    let cloned = cloned();
    for page in pages() {
        let folder = Path::new(&page.path).parent().unwrap_or_else(|| Path::new(""));
        for link in links(&page.text) {
            seen += 1;
            if !cloned.contains(&plain(&folder.join(link))) {
                broken.push(format!("{}: {link}", page.path));
            }
        }
    }
    assert!(seen > 10, "too few links were found: {seen}");
    none(&broken);
}

#[test]
fn a_link_is_found_without_its_anchor() {
    let text = "[a](docs/a.md#top) [b](https://example.org/b) [c](#here) `[d](not/a/link)` ![e](e.png)";
    assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "e.png"]);
}

#[test]
fn the_readme_names_every_make_target_and_no_other() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(": ## ").or_else(|| line.split_once(":  ## ")))
        .map(|(target, _help)| target)
        .collect();
    assert!(targets.contains("demo") && targets.contains("test"), "too few targets were found: {targets:?}");
    let readme = read("README.md");
    let named: BTreeSet<&str> = code(&readme)
        .filter_map(|code| code.strip_prefix("make "))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    assert_eq!(named, targets);
}

#[test]
fn the_map_has_every_member_of_the_workspace_and_no_other() {
    let manifest = read("Cargo.toml");
    let members: BTreeSet<&str> = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = [")?.strip_suffix(']'))
        .expect("the workspace lists its members on one line")
        .split(',')
        .map(|member| member.trim().trim_matches('"'))
        .collect();
    let map = read("ARCHITECTURE.md");
    let headings: BTreeSet<&str> = map
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.split_once("/`").map(|(folder, _)| folder))
        .collect();
    assert_eq!(headings, members);
    let lines = map.lines().count();
    assert!(lines <= LONGEST_MAP, "ARCHITECTURE.md has {lines} lines, of {LONGEST_MAP}");
}

/// Code in these pages that looks like a path is one, from the root or from the member whose section it is in.
#[test]
fn every_file_that_the_map_or_a_recipe_names_exists() {
    let mut missing = vec![];
    let mut seen = 0;
    let cloned = cloned();
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"] {
        let text = read(page);
        let mut section = String::new();
        for line in text.lines() {
            if line.starts_with('#') {
                section = line
                    .strip_prefix("### `")
                    .and_then(|rest| rest.split_once('`'))
                    .map_or_else(String::new, |(folder, _)| folder.to_owned());
            }
            for name in code(line).filter(|name| is_path(name)) {
                seen += 1;
                let folders = ["", section.as_str(), &format!("{section}src/")];
                let exists =
                    folders.iter().any(|folder| cloned.contains(&plain(&Path::new(folder).join(name))));
                if !exists {
                    missing.push(format!("{page}: {name} (section {section:?})"));
                }
            }
        }
    }
    assert!(seen > 50, "too few paths were found: {seen}");
    none(&missing);
}

#[test]
fn every_test_that_the_page_of_threats_names_exists() {
    let page = read("docs/threats.md");
    let named: Vec<_> = code(&page).filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 40, "it names hardly any");
    let missing = named.iter().filter_map(|(place, test)| {
        let path = if is_path(place) { (*place).to_owned() } else { format!("tests/tests/{place}.rs") };
        (!read(&path).contains(&format!("fn {test}("))).then(|| format!("{path} has no test {test}"))
    });
    none(&missing.collect::<Vec<_>>());
}

#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

struct File {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl File {
    /// Its text before its tests.
    fn code(&self) -> &str {
        let tests = self.text.find("\n#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        self.text.get(..tests).unwrap_or(&self.text)
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    fn is_pure(&self) -> bool {
        let mut header = self.text.lines().map_while(|line| line.strip_prefix("//!"));
        header.any(|line| line.starts_with(" Pure.") || line.starts_with(" Pure:"))
    }
}

/// Rust sources, those of the harness among them, without the programs under `*/tests/`.
fn sources() -> impl Iterator<Item = File> {
    let is_source = |file: &File| has_extension(&file.path, "rs") && file.path.contains("/src/");
    texts().filter(is_source)
}

fn pages() -> impl Iterator<Item = File> {
    texts().filter(|file| has_extension(&file.path, "md"))
}

/// Every tracked file that is text.
fn texts() -> impl Iterator<Item = File> {
    tracked(".").into_iter().filter_map(|path| {
        let text = fs::read_to_string(root().join(&path)).ok()?;
        Some(File { path, text })
    })
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The targets of a page's relative links, without anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split('`').step_by(2);
    let targets = prose.flat_map(|prose| prose.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .map(|target| target.split('#').next().unwrap_or(target))
        .filter(|target| !target.is_empty())
}

/// What stands between backticks, and the lines of fenced blocks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).flat_map(str::lines).map(str::trim)
}

/// A file with one of our extensions, or a folder. Patterns and placeholders are not looked up.
fn is_path(name: &str) -> bool {
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) && !name.starts_with('/');
    let ours = ["rs", "md", "toml", "sh", "yaml", "proto"].iter().any(|ours| has_extension(name, ours));
    plain && (ours || name.ends_with('/'))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

fn tracked(below: &str) -> Vec<String> {
    // The checkout may belong to somebody else than root, who runs the tests: git refuses that unless told.
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--", below])
        .current_dir(root())
        .output()
        .expect("git runs: these tests need git and a checkout");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).expect("paths are UTF-8");
    paths.split_terminator('\0').map(str::to_owned).collect()
}

/// What a fresh clone has: tracked files, and the folders above them.
fn cloned() -> BTreeSet<PathBuf> {
    let files = tracked(".");
    files.iter().flat_map(|path| Path::new(path).ancestors()).map(Path::to_path_buf).collect()
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_path_buf()
}
