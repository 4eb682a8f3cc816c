//! Names of workloads: what a certificate's SAN says and what policies compare. Contract 2.2.

#[cfg(planted)]
use crate::planted;
use alloc::{format, string::String, sync::Arc};
use core::fmt;

/// A canonical identity: a DNS-like name in lower case without a trailing dot, or a URI (`spiffe://…`).
/// Cheap to clone; equality is byte equality of the canonical form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    text: Arc<str>,
    kind: Kind,
}

/// Which form of SAN carries an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// DNS SAN.
    Dns,
    /// URI SAN.
    Uri,
}

/// Why a text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// Nothing there.
    #[error("empty")]
    Empty,
    /// Longer than 253 bytes (DNS) or 2048 bytes (URI).
    #[error("too long")]
    TooLong,
    /// A byte that no DNS name or URI may hold (NUL, space, control, wildcard `*`, non-ASCII).
    #[error("byte {0:#04x} is not allowed in a name")]
    Byte(u8),
    /// An empty label or one over 63 bytes.
    #[error("a label is empty or longer than 63 bytes")]
    Label,
}

impl Identity {
    /// Reads a DNS-like name or, if it contains `://`, a URI.
    ///
    /// Of a DNS-like name the case and one trailing dot do not count. Of a URI the case of scheme and authority does not
    /// (RFC 3986 section 6.2.2.1); everything after them is kept as it is.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        match text.split_once("://") {
            Some((scheme, rest)) => parse_uri(text, scheme, rest),
            None => Ok(Self { text: dns_name(text)?.into(), kind: Kind::Dns }),
        }
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// DNS-like or URI.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// `<sa>.<ns>.serviceaccount.identity.<control_ns>.<trust_domain>`, contract 2.2. A trust domain's trailing dot is
/// dropped. The name of a service account may contain dots; a namespace may not, or `a` of `b.c` and `a.b` of `c` would
/// be one identity.
pub fn workload(
    sa: &str,
    ns: &str,
    control_ns: &str,
    trust_domain: &str,
) -> Result<Identity, InvalidIdentity> {
    for part in [sa, ns, control_ns, trust_domain] {
        if part.is_empty() {
            return Err(InvalidIdentity::Empty);
        }
    }
    if ns.contains('.') || control_ns.contains('.') {
        return Err(InvalidIdentity::Byte(b'.'));
    }
    let text = dns_name(&format!("{sa}.{ns}.serviceaccount.identity.{control_ns}.{trust_domain}"))?;
    Ok(Identity { text: text.into(), kind: Kind::Dns })
}

/// The namespace named by a workload identity of this control plane, if it is one.
pub fn namespace_of<'a>(identity: &'a Identity, control_ns: &str, trust_domain: &str) -> Option<&'a str> {
    if identity.kind != Kind::Dns {
        return None;
    }
    let rest = strip_labels(identity.as_str(), trust_domain.strip_suffix('.').unwrap_or(trust_domain))?;
    let rest = strip_labels(rest, control_ns)?;
    let rest = strip_labels(rest, "serviceaccount.identity")?;
    let (sa, ns) = rest.rsplit_once('.')?;
    (!sa.is_empty() && !ns.is_empty()).then_some(ns)
}

/// What stands before `.labels` at the end of `name`.
fn strip_labels<'a>(name: &'a str, labels: &str) -> Option<&'a str> {
    let (rest, tail) = name.split_at_checked(name.len().checked_sub(labels.len())?)?;
    if labels.is_empty() || !tail.eq_ignore_ascii_case(labels) {
        return None;
    }
    rest.strip_suffix('.')
}

/// The longest DNS name, without a trailing dot (RFC 1035 section 2.3.4).
const MAX_DNS: usize = 253;
/// The longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;
/// The longest URI: what the SPIFFE-ID specification asks implementations to support.
const MAX_URI: usize = 2048;

/// The canonical form of a DNS-like name: lower case, without a trailing dot. Letters, digits, `-` and `_` in labels of
/// 1 to 63 bytes, 253 bytes together.
pub(crate) fn dns_name(text: &str) -> Result<String, InvalidIdentity> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err(InvalidIdentity::Empty);
    }
    if name.len() > MAX_DNS {
        return Err(InvalidIdentity::TooLong);
    }
    if let Some(byte) = name.bytes().find(|byte| !(byte.is_ascii_alphanumeric() || b"-_.".contains(byte))) {
        return Err(InvalidIdentity::Byte(byte));
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        return Err(InvalidIdentity::Label);
    }
    #[cfg(planted)]
    if planted::makes(planted::Mistake::CaseKept) {
        return Ok(name.into());
    }
    Ok(name.to_ascii_lowercase())
}

fn parse_uri(text: &str, scheme: &str, rest: &str) -> Result<Identity, InvalidIdentity> {
    if text.len() > MAX_URI {
        return Err(InvalidIdentity::TooLong);
    }
    // `*` is a legal byte of a URI, but in a name that policies compare it would look like a wildcard.
    if let Some(byte) = text.bytes().find(|byte| !byte.is_ascii_graphic() || b"*\"<>\\^`{|}".contains(byte)) {
        return Err(InvalidIdentity::Byte(byte));
    }
    let scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if let Some(byte) = scheme.bytes().find(|byte| !scheme_byte(*byte)) {
        return Err(InvalidIdentity::Byte(byte));
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if scheme.is_empty() || authority.is_empty() {
        return Err(InvalidIdentity::Label);
    }
    // A workload has no userinfo, and its case would count.
    if authority.contains('@') {
        return Err(InvalidIdentity::Byte(b'@'));
    }
    let mut canonical = String::with_capacity(text.len());
    canonical.extend(scheme.chars().map(|char| char.to_ascii_lowercase()));
    canonical.push_str("://");
    canonical.extend(authority.chars().map(|char| char.to_ascii_lowercase()));
    canonical.push_str(path);
    Ok(Identity { text: canonical.into(), kind: Kind::Uri })
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn a_workload_name_is_read() {
        reads("web.prod.serviceaccount.identity.remora.cluster.local", Kind::Dns);
    }

    #[test]
    fn case_and_a_trailing_dot_do_not_count() {
        assert_eq!(Identity::parse("Web.PROD.local.").unwrap().as_str(), "web.prod.local");
    }

    #[test]
    fn a_spiffe_id_is_read() {
        reads("spiffe://cluster.local/ns/prod/sa/Web", Kind::Uri);
    }

    #[test]
    fn only_scheme_and_authority_of_a_uri_are_lowered() {
        assert_eq!(
            Identity::parse("SPIFFE://Cluster.Local/Web").unwrap().as_str(),
            "spiffe://cluster.local/Web"
        );
    }

    #[test]
    fn nothing_is_no_identity() {
        refuses("", InvalidIdentity::Empty);
        refuses(".", InvalidIdentity::Empty);
    }

    #[test]
    fn empty_labels_are_refused() {
        refuses("a..b", InvalidIdentity::Label);
        refuses(".a", InvalidIdentity::Label);
        refuses("a..", InvalidIdentity::Label);
        refuses("://a", InvalidIdentity::Label);
        refuses("spiffe:///a", InvalidIdentity::Label);
    }

    #[test]
    fn labels_are_at_most_63_bytes() {
        reads(&"a".repeat(63), Kind::Dns);
        refuses(&"a".repeat(64), InvalidIdentity::Label);
    }

    #[test]
    fn names_are_at_most_253_bytes() {
        let label = "a".repeat(50);
        let long = [label.as_str(); 5].join(".");
        reads(&long[..253], Kind::Dns);
        reads(&format!("{}.", &long[..253]), Kind::Dns);
        refuses(&long, InvalidIdentity::TooLong);
    }

    #[test]
    fn uris_are_at_most_2048_bytes() {
        let long = format!("spiffe://td/{}", "a".repeat(2048 - 12));
        reads(&long, Kind::Uri);
        refuses(&format!("{long}a"), InvalidIdentity::TooLong);
    }

    #[test]
    fn bytes_that_no_name_holds_are_refused() {
        for (text, byte) in [
            ("a\0.local", 0),
            ("a b.local", b' '),
            ("*.local", b'*'),
            ("a\n", b'\n'),
            ("b\u{fc}cher", 0xc3),
            ("a:b", b':'),
            ("spiffe://td/*", b'*'),
            ("spiffe://td/a b", b' '),
            ("spiffe://td/\0", 0),
            ("spiffe://user@td/a", b'@'),
            ("spi/ffe://td/a", b'/'),
        ] {
            refuses(text, InvalidIdentity::Byte(byte));
        }
    }

    #[test]
    fn a_workload_is_named_by_the_contract() {
        let name = workload("web", "prod", "remora", "cluster.local.").unwrap();
        assert_eq!(name.as_str(), "web.prod.serviceaccount.identity.remora.cluster.local");
    }

    #[test]
    fn a_workload_without_a_part_is_refused() {
        assert_eq!(workload("", "prod", "remora", "cluster.local"), Err(InvalidIdentity::Empty));
        assert_eq!(workload("web", "", "remora", "cluster.local"), Err(InvalidIdentity::Empty));
        assert_eq!(workload("web", "prod", "remora", ""), Err(InvalidIdentity::Empty));
    }

    #[test]
    fn a_namespace_with_a_dot_cannot_borrow_a_name() {
        assert_eq!(workload("a", "b.c", "remora", "cluster.local"), Err(InvalidIdentity::Byte(b'.')));
    }

    #[test]
    fn a_service_account_may_have_dots() {
        let name = workload("build.bot", "prod", "remora", "cluster.local").unwrap();
        assert_eq!(namespace_of(&name, "remora", "cluster.local"), Some("prod"));
    }

    #[test]
    fn a_namespace_is_read_from_a_workload_of_this_control_plane_only() {
        let web = Identity::parse("web.prod.serviceaccount.identity.remora.cluster.local").unwrap();
        assert_eq!(namespace_of(&web, "remora", "cluster.local"), Some("prod"));
        assert_eq!(namespace_of(&web, "remora", "Cluster.Local."), Some("prod"));
        assert_eq!(namespace_of(&web, "linkerd", "cluster.local"), None);
        assert_eq!(namespace_of(&web, "remora", "other.local"), None);
        assert_eq!(namespace_of(&web, "remora", "local"), None);
        assert_eq!(namespace_of(&web, "remora", ""), None);
    }

    #[test]
    fn other_names_have_no_namespace() {
        for name in [
            "remora-identity-headless.remora.svc.cluster.local",
            "prod.serviceaccount.identity.remora.cluster.local",
            "serviceaccount.identity.remora.cluster.local",
            "web.prod.xserviceaccount.identity.remora.cluster.local",
            "spiffe://web.prod.serviceaccount.identity.remora.cluster.local",
        ] {
            let identity = Identity::parse(name).unwrap();
            assert_eq!(namespace_of(&identity, "remora", "cluster.local"), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_name_reads_as_itself(text in "\\PC{0,80}|[A-Za-z.:/@_-]{0,80}") {
            if let Ok(identity) = Identity::parse(&text) {
                prop_assert_eq!(Identity::parse(&identity.to_string()).unwrap(), identity);
            }
        }

        #[test]
        fn the_namespace_of_a_workload_is_its_own(
            sa in "[a-z]([a-z0-9.]{0,10}[a-z])?", ns in "[a-z][a-z0-9-]{0,10}", td in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}",
        ) {
            if let Ok(identity) = workload(&sa, &ns, "remora", &td) {
                prop_assert_eq!(namespace_of(&identity, "remora", &td), Some(ns.as_str()));
            }
        }
    }

    #[track_caller]
    fn reads(text: &str, kind: Kind) {
        let identity = Identity::parse(text).unwrap();
        assert_eq!((identity.as_str(), identity.kind()), (text.strip_suffix('.').unwrap_or(text), kind));
    }

    #[track_caller]
    fn refuses(text: &str, expected: InvalidIdentity) {
        assert_eq!(Identity::parse(text), Err(expected));
    }
}
