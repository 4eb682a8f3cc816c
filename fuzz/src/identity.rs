//! Identity names: rustls-pki-types agrees on what is a DNS name and `http` on what is a URI; a name read again is itself;
//! a workload's name gives back its namespace, and nobody else's name does.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    identity::{Identity, Kind, namespace_of, workload},
    matching::SuffixMatch,
};
use rustls::pki_types::DnsName;

/// The input as a name; then as the parts of a workload's name.
pub fn identity(data: &[u8]) {
    if let Ok(text) = core::str::from_utf8(data) {
        is_a_name(text);
    }
    if let Ok(parts) = Parts::arbitrary(&mut Unstructured::new(data)) {
        parts.hold();
    }
}

fn is_a_name(text: &str) {
    let verdict = Identity::parse(text);
    let Ok(identity) = &verdict else {
        assert!(!is_host_name(text), "pki-types reads {text:?}, but: {verdict:?}");
        return;
    };
    let canonical = identity.as_str();
    assert!(canonical.len() <= text.len(), "{canonical:?} is longer than {text:?}");
    assert_eq!(Identity::parse(canonical).as_ref(), Ok(identity), "read again it is another");
    // What must never be in a name: it would end it, widen it, or look like another.
    assert!(
        canonical.bytes().all(|byte| byte.is_ascii_graphic() && !b"*\"\\".contains(&byte)),
        "{canonical:?}"
    );
    match identity.kind() {
        Kind::Dns => {
            assert!(
                canonical.eq_ignore_ascii_case(text.strip_suffix('.').unwrap_or(text)),
                "{text:?}: {canonical:?}"
            );
            assert!(!canonical.bytes().any(|byte| byte.is_ascii_uppercase()), "{canonical:?}");
            assert!(is_host_name(canonical) || is_laxer(canonical), "pki-types does not read {canonical:?}");
        }
        Kind::Uri => is_a_uri(text, canonical),
    }
    if identity.kind() == Kind::Dns {
        suffixes(identity);
    } else {
        assert!(!SuffixMatch { labels: vec![] }.matches(identity), "{identity}");
    }
}

/// What pki-types takes for a host name.
fn is_host_name(text: &str) -> bool {
    // Its names may end in a dot; ours are compared without, and the dot does not count for the length.
    DnsName::try_from(text).is_ok()
}

/// Where a mesh name is what no host name is: hyphens at the ends of labels, a last label that is a number.
fn is_laxer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex =
        last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || last.bytes().all(|byte| byte.is_ascii_digit())
        || name.split('.').any(|label| label.starts_with('-') || label.ends_with('-'))
}

fn is_a_uri(text: &str, canonical: &str) {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let after = &rest[authority.len()..];
    assert_eq!(
        canonical,
        format!("{}://{}{after}", scheme.to_ascii_lowercase(), authority.to_ascii_lowercase())
    );
    assert!(!authority.is_empty() && !authority.contains('@'), "{text:?}");
    // `http` has no fragments, bounds a scheme to 64 bytes, lets no digit begin one, and reads ports and brackets.
    let odd = scheme.len() > 64 || canonical.contains('#') || authority.contains([':', '[', ']']);
    if let (false, Ok(uri)) = (odd, canonical.parse::<http::Uri>()) {
        assert_eq!(uri.scheme_str(), Some(scheme.to_ascii_lowercase().as_str()), "{canonical:?}");
        assert_eq!(
            uri.authority().map(http::uri::Authority::as_str),
            Some(authority.to_ascii_lowercase().as_str()),
            "{canonical:?}"
        );
    }
}

/// A suffix of whole labels matches, anything else does not. Contract 3.4.
fn suffixes(identity: &Identity) {
    let labels: Vec<String> = identity.as_str().split('.').map(str::to_owned).collect();
    for from in 0..=labels.len() {
        let mut suffix = SuffixMatch { labels: labels[from..].to_vec() };
        assert_eq!(suffix.matches(identity), from > 0, "{identity}: {:?}", suffix.labels);
        let Some(first) = suffix.labels.first_mut() else { continue };
        // A part of a label is none.
        first.remove(0);
        if !first.is_empty() {
            assert!(!suffix.matches(identity), "{identity}: {:?}", suffix.labels);
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Parts {
    account: Label,
    namespace: Label,
    control: Label,
    domain: Label,
    other: (Label, Label),
}

/// Few bytes, so that names meet.
#[derive(Arbitrary, Debug)]
enum Label {
    Letters(Vec<u8>),
    Telling(u8),
}

impl Label {
    fn text(&self) -> String {
        const TELLING: [&str; 8] = [
            "serviceaccount",
            "identity",
            "serviceaccount.identity",
            "a.b",
            "b.serviceaccount.identity",
            "x.",
            "A",
            "",
        ];
        let letters = b"aabbcc...-_XY*\0";
        match self {
            Self::Letters(bytes) => bytes
                .iter()
                .take(70)
                .map(|byte| char::from(letters[usize::from(*byte) % letters.len()]))
                .collect(),
            Self::Telling(which) => TELLING[usize::from(*which) % TELLING.len()].to_owned(),
        }
    }
}

impl Parts {
    fn hold(&self) {
        let (account, namespace) = (self.account.text(), self.namespace.text());
        let (control, domain) = (self.control.text(), self.domain.text());
        let Ok(name) = workload(&account, &namespace, &control, &domain) else { return };
        assert_eq!(name.kind(), Kind::Dns);
        assert_eq!(
            namespace_of(&name, &control, &domain),
            Some(namespace.to_ascii_lowercase().as_str()),
            "{name} of {self:?}"
        );
        // Nobody else has that name: another account or namespace of the same control plane has another.
        let (other, elsewhere) = (self.other.0.text(), self.other.1.text());
        if let Ok(theirs) = workload(&other, &elsewhere, &control, &domain) {
            let same = other.eq_ignore_ascii_case(&account) && elsewhere.eq_ignore_ascii_case(&namespace);
            assert_eq!(theirs == name, same, "{self:?}");
        }
        // Whatever name is said to be of a namespace is the name of an account in it.
        let control = self.other.0.text();
        if let (false, Some(found)) = (control.contains('.'), namespace_of(&name, &control, &domain)) {
            let domain = domain.strip_suffix('.').unwrap_or(&domain);
            let behind = format!(".{found}.serviceaccount.identity.{control}.{domain}").to_ascii_lowercase();
            let account = name.as_str().strip_suffix(&behind).unwrap_or_default();
            assert_eq!(workload(account, found, &control, domain).as_ref(), Ok(&name), "{self:?}");
        }
    }
}
