//! SNI and ALPN out of a TLS ClientHello, over any number of records and segments. RFC 8446 section 4.1.2.

use crate::identity::dns_name;
#[cfg(planted)]
use crate::planted;
use alloc::{borrow::Cow, string::String, vec::Vec};
use core::net::Ipv4Addr;

/// The verdict on a prefix of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far this can still become a ClientHello.
    NeedMore,
    /// This is no ClientHello that we read (another protocol, a malformed one, one over [`MAX_BYTES`]).
    Not(NotHello),
    /// A whole ClientHello.
    Hello(Hello),
}

/// Why the bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHello {
    /// The bytes are another protocol.
    OtherProtocol,
    /// They begin as TLS and then break its rules.
    Malformed,
    /// More than [`MAX_BYTES`] without an end.
    TooLong,
}

/// What the proxy wants to know of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The host name of the server_name extension, lower case, if there is a valid one. An IP address is none (RFC 6066
    /// section 3); a trailing dot is dropped.
    pub sni: Option<String>,
    /// The protocols of the ALPN extension in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// Whether TLS 1.3 is among the supported versions.
    pub tls13: bool,
}

/// The longest ClientHello that is read, counted with its record headers.
pub const MAX_BYTES: usize = 16 * 1024;

/// Parses; `NeedMore` is never answered for `head.len() >= MAX_BYTES`.
///
/// The verdict depends on the bytes alone, not on how they were split into reads or records, and a broken rule is
/// reported with the byte that breaks it. What follows the ClientHello is not looked at. Of the record's version only
/// "3.0 to 3.3" is asked, of the hello's own only "3.x": clients put many things there, and it decides nothing.
pub fn parse(head: &[u8]) -> Parsed {
    let head = head.get(..MAX_BYTES).unwrap_or(head);
    let handshake = match gather(head) {
        Ok(handshake) => handshake,
        Err(not) => return Parsed::Not(not),
    };
    let body = handshake.bytes.get(HANDSHAKE_HEADER..).unwrap_or_default();
    let declared = handshake.declared - HANDSHAKE_HEADER;
    let body = Reader { bytes: body.get(..declared).unwrap_or(body), left: declared };
    match read_hello(body) {
        Err(Stop::Broken) => Parsed::Not(NotHello::Malformed),
        Ok(_) | Err(Stop::Short) if handshake.too_long => Parsed::Not(NotHello::TooLong),
        Ok(found) if body.bytes.len() == body.left => Parsed::Hello(found.to_hello()),
        Ok(_) | Err(Stop::Short) => Parsed::NeedMore,
    }
}

/// Content type, version and length of a record (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
/// The longest plaintext of a record.
const MAX_RECORD: usize = 1 << 14;
/// Type and length of a handshake message (RFC 8446 section 4).
const HANDSHAKE_HEADER: usize = 4;
/// Version, random, empty session id, one cipher suite, one compression method.
const MIN_BODY: usize = 2 + 32 + 1 + (2 + 2) + (1 + 1);

/// What the records carry of the first handshake message.
struct Handshake<'a> {
    /// From its header on; borrowed where one record carries all of it. What follows the message may be in it.
    bytes: Cow<'a, [u8]>,
    /// Its whole length with its header; at least that of the shortest hello while the header is not whole.
    declared: usize,
    /// It cannot end within [`MAX_BYTES`]. Then `bytes` are those that came before this was plain, so that a rule
    /// broken before still counts, and one broken later does not change the verdict.
    too_long: bool,
}

/// Puts together what the records carry.
fn gather(head: &[u8]) -> Result<Handshake<'_>, NotHello> {
    let mut bytes: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut at = 0;
    loop {
        let rest = head.get(at..).unwrap_or_default();
        let length = record_length(rest, at == 0)?;
        let body = rest.get(RECORD_HEADER..).unwrap_or_default();
        let fragment = body.get(..length).unwrap_or(body);
        let before = bytes.len();
        if at == 0 {
            bytes = Cow::Borrowed(fragment);
        } else {
            bytes.to_mut().extend_from_slice(fragment);
        }

        let declared = declared_length(&bytes)?;
        let needed = declared.saturating_sub(before);
        let further_header = if length > 0 && needed > length { RECORD_HEADER } else { 0 };
        if at + RECORD_HEADER + needed + further_header > MAX_BYTES {
            let plain = before.max(HANDSHAKE_HEADER).min(bytes.len());
            match &mut bytes {
                Cow::Borrowed(bytes) => *bytes = bytes.get(..plain).unwrap_or(bytes),
                Cow::Owned(bytes) => bytes.truncate(plain),
            }
            return Ok(Handshake { bytes, declared, too_long: true });
        }
        // A record that is not whole, or whose header has not come, is the last for now.
        if needed <= fragment.len() || length == 0 || fragment.len() < length {
            return Ok(Handshake { bytes, declared, too_long: false });
        }
        at += RECORD_HEADER + length;
    }
}

/// The length that a record's header announces, or 0 while the header is not whole. Each byte is judged as it comes.
fn record_length(record: &[u8], first: bool) -> Result<usize, NotHello> {
    for (index, byte) in record.iter().take(3).enumerate() {
        let (fits, not) = match index {
            0 => (*byte == 22, NotHello::OtherProtocol),
            1 => (*byte == 3, NotHello::OtherProtocol),
            _ => (*byte <= 3, NotHello::Malformed),
        };
        if !fits {
            return Err(if first { not } else { NotHello::Malformed });
        }
    }
    let length = match record.get(3..) {
        Some([high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        Some([high]) if usize::from(*high) << 8 > MAX_RECORD => return Err(NotHello::Malformed),
        Some(_) | None => return Ok(0),
    };
    // RFC 8446 section 5.1: no empty handshake fragments, and none over 2^14.
    if (1..=MAX_RECORD).contains(&length) { Ok(length) } else { Err(NotHello::Malformed) }
}

/// The whole length of the handshake message that begins here, its header included.
fn declared_length(bytes: &[u8]) -> Result<usize, NotHello> {
    const CLIENT_HELLO: u8 = 1;

    match bytes {
        [] | [CLIENT_HELLO] | [CLIENT_HELLO, _] | [CLIENT_HELLO, _, _] => Ok(HANDSHAKE_HEADER + MIN_BODY),
        [CLIENT_HELLO, high, middle, low, ..] => {
            let body = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if body < MIN_BODY { Err(NotHello::Malformed) } else { Ok(HANDSHAKE_HEADER + body) }
        }
        _ => Err(NotHello::Malformed),
    }
}

/// What was found, still where it came from.
#[derive(Default)]
struct Found<'a> {
    host: Option<&'a [u8]>,
    /// The checked list of protocol names, each behind its length.
    alpn: Option<&'a [u8]>,
    /// The checked list of versions.
    versions: Option<&'a [u8]>,
}

impl Found<'_> {
    fn to_hello(&self) -> Hello {
        let mut alpn = Vec::new();
        let mut list = self.alpn.unwrap_or_default();
        while let Some((length, rest)) = list.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or((rest, &[]));
            #[cfg(planted)]
            if rest.is_empty() && planted::makes(planted::Mistake::LastProtocolUnread) {
                break;
            }
            alpn.push(name.to_vec());
            list = rest;
        }
        let tls13 = self.versions.unwrap_or_default().chunks_exact(2).any(|version| version == [3, 4]);
        Hello { sni: self.host.and_then(host_name), alpn, tls13 }
    }
}

/// The canonical form of a host name, if it is one.
fn host_name(bytes: &[u8]) -> Option<String> {
    let name = dns_name(core::str::from_utf8(bytes).ok()?).ok()?;
    if name.parse::<Ipv4Addr>().is_ok() { None } else { Some(name) }
}

/// Reads the body of a ClientHello (RFC 8446 section 4.1.2; RFC 5246 section 7.4.1.2 for those without extensions).
fn read_hello(mut body: Reader<'_>) -> Result<Found<'_>, Stop> {
    if body.u8()? != 3 {
        return Err(Stop::Broken);
    }
    body.u8()?;
    body.take(32)?;
    let session_id = body.vector8(2 + 2 + 1 + 1)?;
    ensure(session_id.left <= 32)?;
    let cipher_suites = body.vector16(1 + 1)?;
    ensure(cipher_suites.left >= 2 && cipher_suites.left.is_multiple_of(2))?;
    let mut compression = body.vector8(0)?;
    ensure(compression.left >= 1)?;
    // RFC 5246 section 7.4.1.2: null must be among them.
    ensure(compression.rest()?.contains(&0))?;
    if body.left == 0 {
        return Ok(Found::default());
    }
    let extensions = body.vector16(0)?;
    ensure(body.left == 0)?;
    read_extensions(extensions)
}

fn read_extensions(mut extensions: Reader<'_>) -> Result<Found<'_>, Stop> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    const SUPPORTED_VERSIONS: u16 = 43;

    let mut found = Found::default();
    let mut server_name_seen = false;
    while extensions.left > 0 {
        ensure(extensions.left >= 4)?;
        let kind = extensions.u16()?;
        let data = extensions.vector16(0)?;
        // RFC 8446 section 4.2: no extension twice. Kept to for those that we believe.
        match kind {
            SERVER_NAME => {
                ensure(!server_name_seen)?;
                server_name_seen = true;
                found.host = read_server_name(data)?;
            }
            ALPN => {
                ensure(found.alpn.is_none())?;
                found.alpn = Some(read_alpn(data)?);
            }
            SUPPORTED_VERSIONS => {
                ensure(found.versions.is_none())?;
                found.versions = Some(read_versions(data)?);
            }
            // GREASE (RFC 8701), key shares of any size, and whatever else there will be.
            _ => {}
        }
    }
    Ok(found)
}

/// `ServerName server_name_list<1..2^16-1>`, with at most one host_name (RFC 6066 section 3).
fn read_server_name(mut data: Reader<'_>) -> Result<Option<&[u8]>, Stop> {
    const HOST_NAME: u8 = 0;

    ensure(data.left > 2)?;
    let mut names = data.vector16(0)?;
    ensure(data.left == 0 && names.left > 0)?;
    let mut host = None;
    while names.left > 0 {
        // Other types were never defined, so neither is how to skip them: the list ends for us.
        if names.u8()? != HOST_NAME {
            break;
        }
        ensure(host.is_none())?;
        let mut name = names.vector16(0)?;
        ensure(name.left > 0)?;
        host = Some(name.rest()?);
    }
    Ok(host)
}

/// `ProtocolName protocol_name_list<2..2^16-1>`, none of them empty (RFC 7301 section 3.1).
fn read_alpn(mut data: Reader<'_>) -> Result<&[u8], Stop> {
    ensure(data.left >= 2 + 2)?;
    let mut list = data.vector16(0)?;
    ensure(data.left == 0 && list.left >= 2)?;
    let mut names = list;
    while names.left > 0 {
        ensure(names.left >= 2)?;
        ensure(names.vector8(0)?.left > 0)?;
    }
    list.rest()
}

/// `ProtocolVersion versions<2..254>` (RFC 8446 section 4.2.1).
fn read_versions(mut data: Reader<'_>) -> Result<&[u8], Stop> {
    ensure(data.left > 2)?;
    let mut list = data.vector8(0)?;
    ensure(data.left == 0 && list.left >= 2 && list.left.is_multiple_of(2))?;
    list.rest()
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// The bytes that have come so far are over.
    Short,
    /// Whatever comes, a rule is broken.
    Broken,
}

fn ensure(holds: bool) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::Broken) }
}

/// Reads what has come of a structure whose whole length is known.
#[derive(Clone, Copy)]
struct Reader<'a> {
    /// What has come, never more than `left`.
    bytes: &'a [u8],
    /// What there is to read, come or not.
    left: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        ensure(count <= self.left)?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Stop::Short)?;
        self.bytes = rest;
        self.left -= count;
        Ok(taken)
    }

    fn rest(&mut self) -> Result<&'a [u8], Stop> {
        self.take(self.left)
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.take(1)?.first().copied().ok_or(Stop::Short)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// A vector behind one byte of length; at least `after` bytes must have room behind it.
    fn vector8(&mut self, after: usize) -> Result<Self, Stop> {
        let length = self.u8()?;
        self.vector(length.into(), after)
    }

    /// A vector behind two bytes of length.
    fn vector16(&mut self, after: usize) -> Result<Self, Stop> {
        ensure(self.left >= 2)?;
        let length = self.u16()?;
        self.vector(length.into(), after)
    }

    fn vector(&mut self, length: usize, after: usize) -> Result<Self, Stop> {
        ensure(length + after <= self.left)?;
        let (bytes, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        self.left -= length;
        Ok(Self { bytes, left: length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const OTHER: Parsed = Parsed::Not(NotHello::OtherProtocol);
    const MALFORMED: Parsed = Parsed::Not(NotHello::Malformed);
    const TOO_LONG: Parsed = Parsed::Not(NotHello::TooLong);

    #[test]
    fn nothing_asks_for_more() {
        assert_eq!(parse(b""), Parsed::NeedMore);
    }

    #[test]
    fn sni_alpn_and_version_are_read() {
        let extensions =
            [sni("Web.Prod."), alpn(&["transport.l5d.io/v1", "h2"]), versions(&[0x0304, 0x0303])];
        check(&record(&hello(&extensions)), hello_of(Some("web.prod"), &["transport.l5d.io/v1", "h2"], true));
    }

    #[test]
    fn a_hello_without_extensions_is_one() {
        let mut body = body(&[]);
        body.truncate(MIN_BODY);
        check(&record(&handshake(&body)), Parsed::Hello(Hello::default()));
        check(&record(&hello(&[])), Parsed::Hello(Hello::default()));
    }

    #[test]
    fn tls12_is_told_apart() {
        check(&record(&hello(&[versions(&[0x0303])])), hello_of(None, &[], false));
    }

    #[test]
    fn grease_is_stepped_over() {
        let extensions = [
            (0x2a2a, vec![]),
            sni("web"),
            (0xfafa, vec![0]),
            alpn(&["\u{a}\u{a}", "h2"]),
            versions(&[0x7a7a, 0x0304]),
        ];
        check(&record(&hello(&extensions)), hello_of(Some("web"), &["\u{a}\u{a}", "h2"], true));
    }

    #[test]
    fn a_large_key_share_before_the_name_is_stepped_over() {
        check(&record(&hello(&[(51, vec![7; 1300]), sni("web")])), hello_of(Some("web"), &[], false));
    }

    #[test]
    fn fragments_of_any_size_are_put_together() {
        let message = hello(&[sni("web"), alpn(&["h2"]), versions(&[0x0304])]);
        for size in [1, 2, 3, 4, 5, 41, 42, 100] {
            check(&records(&message, size), hello_of(Some("web"), &["h2"], true));
        }
    }

    #[test]
    fn what_follows_the_hello_is_not_looked_at() {
        let message = hello(&[sni("web")]);
        let expected = hello_of(Some("web"), &[], false);
        check(&record(&[&message[..], b"\x14\x00\x00"].concat()), expected.clone());
        check(&[&record(&message)[..], b"\x17garbage"].concat(), expected);
    }

    #[test]
    fn the_record_of_a_hello_need_not_be_whole() {
        let mut bytes = record(&hello(&[sni("web")]));
        bytes[3] = 0x40;
        bytes[4] = 0;
        check(&bytes, hello_of(Some("web"), &[], false));
    }

    #[test]
    fn record_versions_of_real_clients_are_accepted() {
        for minor in 0..=3 {
            let mut bytes = record(&hello(&[sni("web")]));
            bytes[2] = minor;
            check(&bytes, hello_of(Some("web"), &[], false));
        }
    }

    #[test]
    fn other_record_versions_are_refused() {
        check(b"\x16\x03\x04", MALFORMED);
        check(b"\x16\x02", OTHER);
    }

    #[test]
    fn other_protocols_are_refused_at_once() {
        check(b"GET / HTTP/1.1", OTHER);
        check(b"\x15\x03\x03\x00\x02", OTHER);
        check(b"\x00", OTHER);
    }

    #[test]
    fn other_handshake_messages_are_refused() {
        check(b"\x16\x03\x01\x00\x04\x02", MALFORMED);
        check(b"\x16\x03\x01\x00\x04\x00\x00\x00\x00", MALFORMED);
    }

    #[test]
    fn records_that_break_the_rules_are_refused() {
        check(b"\x16\x03\x01\x00\x00", MALFORMED);
        check(b"\x16\x03\x01\x40\x01", MALFORMED);
        check(b"\x16\x03\x01\x41", MALFORMED);
    }

    #[test]
    fn another_record_between_the_fragments_is_refused() {
        let mut bytes = records(&hello(&[sni("web")]), 20);
        bytes[25] = 23;
        check(&bytes, MALFORMED);
    }

    #[test]
    fn a_message_too_short_for_a_hello_is_refused() {
        check(b"\x16\x03\x01\x02\x00\x01\x00\x00\x28", MALFORMED);
        check(b"\x16\x03\x01\x02\x00\x01\x00\x00\x29", Parsed::NeedMore);
    }

    #[test]
    fn a_message_too_long_is_refused_as_soon_as_it_says_so() {
        // 16 KiB with the record's header and the message's own.
        let longest = (MAX_BYTES - RECORD_HEADER - HANDSHAKE_HEADER) as u16;
        let [high, low] = longest.to_be_bytes();
        check(&[0x16, 3, 1, 0x3f, 0xff, 1, 0, high, low], Parsed::NeedMore);
        let [high, low] = (longest + 1).to_be_bytes();
        check(&[0x16, 3, 1, 0x3f, 0xff, 1, 0, high, low], TOO_LONG);
        check(b"\x16\x03\x01\x40\x00\x01\x01\x00\x00", TOO_LONG);
    }

    #[test]
    fn what_was_too_long_stays_too_long_whatever_follows() {
        let mut bytes = vec![0x16, 3, 1, 0x30, 0x00, 1, 0, 0x40, 0];
        bytes.extend_from_slice(&[9; 40]);
        check(&bytes, TOO_LONG);
        let mut fragments = records(&[&[1, 0, 0x3f, 0xe0, 3, 3][..], &[0; 33], &[0xff; 3500]].concat(), 1);
        assert_eq!(parse(&fragments), TOO_LONG);
        fragments.truncate(60);
        assert_eq!(parse(&fragments), TOO_LONG);
    }

    #[test]
    fn the_headers_of_further_records_count_too() {
        let longest = (MAX_BYTES - RECORD_HEADER - HANDSHAKE_HEADER) as u16;
        let [high, low] = longest.to_be_bytes();
        // The same message cannot fit once it is known to need a second record.
        check(&[0x16, 3, 1, 0x30, 0x00, 1, 0, high, low], TOO_LONG);
    }

    #[test]
    fn a_hello_of_the_longest_length_is_read() {
        let padding = MAX_BYTES - record(&hello(&[(21, vec![])])).len();
        let whole = record(&hello(&[(21, vec![0; padding])]));
        assert_eq!(whole.len(), MAX_BYTES);
        assert_eq!(parse(&whole), Parsed::Hello(Hello::default()));
        assert_eq!(parse(&whole[..MAX_BYTES - 1]), Parsed::NeedMore);
        let longer = record(&hello(&[(21, vec![0; padding + 1])]));
        assert_eq!(parse(&longer), TOO_LONG);
    }

    #[test]
    fn a_hello_in_fragments_of_one_byte_is_read_up_to_the_limit() {
        let endless = records(&hello(&[(21, vec![0; 2600])]), 1);
        assert_eq!(endless.len(), 6 * (hello(&[(21, vec![0; 2600])]).len()));
        assert!(matches!(parse(&endless), Parsed::Hello(_)));
        assert_eq!(parse(&records(&hello(&[(21, vec![0; 2800])]), 1)), TOO_LONG);
    }

    #[test]
    fn a_session_id_over_32_bytes_is_refused() {
        let mut message = hello(&[]);
        message[HANDSHAKE_HEADER + 34] = 33;
        check(&record(&message), MALFORMED);
    }

    #[test]
    fn cipher_suites_come_in_pairs_and_are_not_none() {
        for length in [0, 3] {
            let mut body = body(&[]);
            body.splice(35..39, [0, length].into_iter().chain(vec![0; length.into()]));
            body.resize(60, 0);
            check(&record(&handshake(&body)), MALFORMED);
        }
    }

    #[test]
    fn null_must_be_among_the_compression_methods() {
        let mut body = body(&[]);
        body[40] = 1;
        check(&record(&handshake(&body)), MALFORMED);
    }

    #[test]
    fn a_version_that_is_not_3_is_refused() {
        let mut message = hello(&[]);
        message[HANDSHAKE_HEADER] = 2;
        check(&record(&message), MALFORMED);
    }

    #[test]
    fn bytes_after_the_extensions_are_refused() {
        let mut body = body(&[sni("web")]);
        body.push(0);
        check(&record(&handshake(&body)), MALFORMED);
    }

    #[test]
    fn an_extension_longer_than_the_list_is_refused() {
        let mut body = body(&[(21, vec![0; 4])]);
        let length = body.len();
        body[length - 5] = 5;
        check(&record(&handshake(&body)), MALFORMED);
    }

    #[test]
    fn an_extension_that_we_believe_comes_once() {
        for twice in [sni("web"), alpn(&["h2"]), versions(&[0x0304])] {
            check(&record(&hello(&[twice.clone(), twice])), MALFORMED);
        }
        check(&record(&hello(&[(21, vec![]), (21, vec![])])), Parsed::Hello(Hello::default()));
    }

    #[test]
    fn two_host_names_are_refused() {
        check(&record(&hello(&[(0, b"\x00\x0c\x00\x00\x03web\x00\x00\x03api".to_vec())])), MALFORMED);
    }

    #[test]
    fn a_name_of_another_type_ends_the_list() {
        check(
            &record(&hello(&[(0, b"\x00\x08\x00\x00\x03web\x01\x00".to_vec())])),
            hello_of(Some("web"), &[], false),
        );
        check(&record(&hello(&[(0, b"\x00\x02\x01\x00".to_vec())])), Parsed::Hello(Hello::default()));
    }

    #[test]
    fn server_names_that_break_the_rules_are_refused() {
        for data in [
            &b""[..],
            b"\x00\x00",
            b"\x00\x03\x00\x00\x00",
            b"\x00\x04\x00\x00\x03w",
            b"\x00\x04\x00\x00\x01wx",
        ] {
            check(&record(&hello(&[(0, data.to_vec())])), MALFORMED);
        }
    }

    #[test]
    fn a_host_name_that_is_none_counts_as_absent() {
        for name in ["10.0.0.1", "::1", "a b", "a..b", "*.web", "b\u{fc}cher", "web\0", "a:80"] {
            check(&record(&hello(&[sni(name)])), Parsed::Hello(Hello::default()));
        }
    }

    #[test]
    fn protocol_lists_that_break_the_rules_are_refused() {
        for data in [
            &b""[..],
            b"\x00\x00",
            b"\x00\x01\x00",
            b"\x00\x02\x00\x00",
            b"\x00\x03\x03h2",
            b"\x00\x03\x02h2x",
        ] {
            check(&record(&hello(&[(16, data.to_vec())])), MALFORMED);
        }
    }

    #[test]
    fn version_lists_that_break_the_rules_are_refused() {
        for data in [&b""[..], b"\x00", b"\x01\x03", b"\x03\x03\x04\x03", b"\x02\x03\x04\x00"] {
            check(&record(&hello(&[(43, data.to_vec())])), MALFORMED);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_wait_forever(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut head = b"\x16\x03\x01".to_vec();
            head.extend_from_slice(&bytes);
            let verdict = parse(&head);
            // A verdict is final.
            if verdict != Parsed::NeedMore {
                head.extend_from_slice(b"\x00\x01\x02");
                prop_assert_eq!(parse(&head), verdict);
            }
            head.resize(MAX_BYTES, 0);
            prop_assert_ne!(parse(&head), Parsed::NeedMore);
        }

        #[test]
        fn neither_splits_nor_fragments_change_the_verdict(
            name in "[a-z0-9-]{1,20}",
            protocols in proptest::collection::vec("[a-z0-9/.]{1,9}", 1..4),
            other in proptest::collection::vec(any::<u8>(), 0..100),
            size in 1usize..200,
            flip in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let names: Vec<&str> = protocols.iter().map(String::as_str).collect();
            let mut message = hello(&[(51, other), sni(&name), alpn(&names), versions(&[0x0304])]);
            if let Some((at, byte)) = flip {
                // Its type and length stay, so that the bytes behind it never count.
                let at = HANDSHAKE_HEADER + at.index(message.len() - HANDSHAKE_HEADER);
                message[at] = byte;
            }
            let whole = parse(&record(&message));
            prop_assert_ne!(&whole, &Parsed::NeedMore);
            let fragments = records(&message, size);
            prop_assert_eq!(&parse(&fragments), &whole);
            for end in 0..fragments.len() {
                let verdict = parse(&fragments[..end]);
                prop_assert!(verdict == whole || verdict == Parsed::NeedMore, "{:?} after {}", verdict, end);
            }
        }
    }

    fn hello_of(sni: Option<&str>, alpn: &[&str], tls13: bool) -> Parsed {
        let alpn = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Parsed::Hello(Hello { sni: sni.map(Into::into), alpn, tls13 })
    }

    fn sni(name: &str) -> (u16, Vec<u8>) {
        (0, behind16(&[&[0], &behind16(name.as_bytes())[..]].concat()))
    }

    fn alpn(names: &[&str]) -> (u16, Vec<u8>) {
        let list: Vec<u8> = names.iter().flat_map(|name| behind8(name.as_bytes())).collect();
        (16, behind16(&list))
    }

    fn versions(versions: &[u16]) -> (u16, Vec<u8>) {
        (43, behind8(&versions.iter().flat_map(|version| version.to_be_bytes()).collect::<Vec<u8>>()))
    }

    fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        handshake(&body(extensions))
    }

    fn body(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut body = b"\x03\x03".to_vec();
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(b"\x00\x00\x02\x13\x01\x01\x00");
        let list: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &behind16(data)].concat())
            .collect();
        body.extend_from_slice(&behind16(&list));
        body
    }

    fn handshake(body: &[u8]) -> Vec<u8> {
        [&[1, 0][..], &behind16(body)].concat()
    }

    fn record(message: &[u8]) -> Vec<u8> {
        records(message, MAX_RECORD)
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|fragment| [b"\x16\x03\x01", &behind16(fragment)[..]].concat())
            .collect()
    }

    fn behind8(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn behind16(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better in a table")]
    fn check(head: &[u8], expected: Parsed) {
        assert_eq!(parse(head), expected);
        // Whatever was said of it, every beginning of it must agree.
        for end in 0..head.len() {
            let earlier = parse(&head[..end]);
            assert!(earlier == expected || earlier == Parsed::NeedMore, "{earlier:?} after {end} bytes");
        }
    }
}
