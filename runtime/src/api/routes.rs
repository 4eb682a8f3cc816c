//! What a route matches: hosts, paths, headers, queries, methods; gRPC routes as HTTP routes on POST and a path.

use super::{
    Invalid, Reading,
    parts::{self, shown},
};
use linkerd2_proxy_api::{
    grpc_route, http_route,
    http_route::{header_match, host_match, path_match, query_param_match},
    http_types, tls_route,
    tls_route::sni_match,
};
use regex::{Regex, RegexBuilder};
use remora_core::route::{HostMatch, HttpMatch, PathMatch, ValueMatch};

/// Bytes that one compiled regular expression may take.
const REGEX_SIZE: usize = 64 * 1024;

/// A host of an HTTP or gRPC route.
pub(super) fn host(wire: http_route::HostMatch) -> Result<HostMatch, Invalid> {
    match wire.r#match {
        Some(host_match::Match::Exact(name)) => exact_host(&name),
        Some(host_match::Match::Suffix(suffix)) => suffix_host(suffix.reverse_labels),
        None => Err(Invalid::new("neither a name nor a suffix")),
    }
}

/// A server name of a TLS route.
pub(super) fn sni(wire: tls_route::SniMatch) -> Result<HostMatch, Invalid> {
    match wire.r#match {
        Some(sni_match::Match::Exact(name)) => exact_host(&name),
        Some(sni_match::Match::Suffix(suffix)) => suffix_host(suffix.reverse_labels),
        None => Err(Invalid::new("neither a name nor a suffix")),
    }
}

fn exact_host(name: &str) -> Result<HostMatch, Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("an empty name"));
    }
    Ok(HostMatch::Exact(name.to_ascii_lowercase()))
}

/// The wire has the labels from right to left.
fn suffix_host(reverse_labels: Vec<String>) -> Result<HostMatch, Invalid> {
    if reverse_labels.is_empty() || reverse_labels.iter().any(String::is_empty) {
        return Err(Invalid::new("a suffix without labels, or with an empty one"));
    }
    Ok(HostMatch::Suffix(reverse_labels.into_iter().rev().map(|label| label.to_ascii_lowercase()).collect()))
}

/// One set of conditions of an HTTP route.
pub(super) fn http_match(
    reading: &mut Reading,
    wire: http_route::HttpRouteMatch,
) -> Result<HttpMatch, Invalid> {
    let path = wire.path.map(|path| reading.at("path", |reading| path_match(reading, path))).transpose()?;
    let headers = reading.each("headers", wire.headers, header)?;
    let query = reading.each("query_params", wire.query_params, query)?;
    let method = wire.method.map(|method| reading.at("method", |_| self::method(method))).transpose()?;
    Ok(HttpMatch { path, headers, query, method })
}

/// One set of conditions of a gRPC route: POST (gRPC over HTTP/2, "Requests") on `/service/method`.
pub(super) fn grpc_match(
    reading: &mut Reading,
    wire: grpc_route::GrpcRouteMatch,
) -> Result<HttpMatch, Invalid> {
    let rpc = wire.rpc.map(|rpc| reading.at("rpc", |_| rpc_path(rpc))).transpose()?.flatten();
    let headers = reading.each("headers", wire.headers, header)?;
    Ok(HttpMatch { path: rpc, headers, query: Vec::new(), method: Some("POST".to_owned()) })
}

fn rpc_path(rpc: grpc_route::GrpcRpcMatch) -> Result<Option<PathMatch>, Invalid> {
    let grpc_route::GrpcRpcMatch { service, method } = rpc;
    if service.contains('/') || method.contains('/') {
        return Err(Invalid::new("a service or method with a slash"));
    }
    Ok(match (service.is_empty(), method.is_empty()) {
        (true, true) => None,
        (false, true) => Some(PathMatch::Prefix(format!("/{service}"))),
        (false, false) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
        (true, false) => Some(PathMatch::AnyService(method)),
    })
}

fn path_match(reading: &mut Reading, wire: http_route::PathMatch) -> Result<PathMatch, Invalid> {
    let absolute = |path: String| {
        if path.starts_with('/') {
            Ok(path)
        } else {
            Err(Invalid::new(format!("{:?} does not begin with a slash", shown(&path))))
        }
    };
    match wire.kind {
        Some(path_match::Kind::Exact(path)) => absolute(path).map(PathMatch::Exact),
        Some(path_match::Kind::Prefix(path)) => absolute(path).map(PathMatch::Prefix),
        Some(path_match::Kind::Regex(pattern)) => regex(reading, &pattern).map(PathMatch::Regex),
        None => Err(Invalid::new("neither exact, prefix nor regex")),
    }
}

fn header(reading: &mut Reading, wire: http_route::HeaderMatch) -> Result<(String, ValueMatch), Invalid> {
    let name = http::HeaderName::from_bytes(wire.name.as_bytes())
        .map_err(|_| Invalid::new(format!("{:?} is no header name", shown(&wire.name))).within("name"))?;
    let value = match wire.value {
        Some(header_match::Value::Exact(value)) => ValueMatch::Exact(value),
        Some(header_match::Value::Regex(pattern)) => ValueMatch::Regex(regex(reading, &pattern)?),
        None => return Err(Invalid::new("neither exact nor regex").within("value")),
    };
    Ok((name.as_str().to_owned(), value))
}

fn query(reading: &mut Reading, wire: http_route::QueryParamMatch) -> Result<(String, ValueMatch), Invalid> {
    if wire.name.is_empty() {
        return Err(Invalid::new("empty").within("name"));
    }
    let value = match wire.value {
        Some(query_param_match::Value::Exact(value)) => ValueMatch::Exact(value.into_bytes()),
        Some(query_param_match::Value::Regex(pattern)) => ValueMatch::Regex(regex(reading, &pattern)?),
        None => return Err(Invalid::new("neither exact nor regex").within("value")),
    };
    Ok((wire.name, value))
}

pub(super) fn method(wire: http_types::HttpMethod) -> Result<String, Invalid> {
    let method = http::Method::try_from(wire).map_err(|error| Invalid::new(error.to_string()))?;
    Ok(method.as_str().to_owned())
}

/// Anchored, because a pattern of the Gateway API covers the whole value. Linear in the value (the regex crate has no
/// backtracking); its size is bounded because the pattern may come from any namespace.
fn regex(reading: &mut Reading, pattern: &str) -> Result<Regex, Invalid> {
    let Some(left) = reading.regexes_left.checked_sub(1) else {
        return Err(Invalid::new(format!("more than {} regular expressions", super::MAX_REGEXES)));
    };
    reading.regexes_left = left;
    let compile =
        |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE).build();
    // First by itself: `a)|(b` is nothing alone, but between our brackets it would escape the anchors.
    compile(pattern).and_then(|_| compile(&format!("^(?:{pattern})$"))).map_err(|error| {
        // The pattern comes first, whole; the reason is the last line.
        let why = error.to_string();
        let why = shown(why.lines().last().unwrap_or_default());
        Invalid::new(format!("{:?} is no regular expression: {why}", shown(pattern)))
    })
}

/// The resource behind a route and its hosts, which every kind of HTTP route begins with.
pub(super) fn head(
    reading: &mut Reading,
    metadata: Option<linkerd2_proxy_api::meta::Metadata>,
    hosts: Vec<http_route::HostMatch>,
) -> Result<(std::sync::Arc<remora_core::policy::ResourceRef>, Vec<HostMatch>), Invalid> {
    let meta = parts::resource(metadata)?;
    Ok((meta, reading.each("hosts", hosts, |_, wire| host(wire))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_turned_into_writing_order() {
        let labels = ["COM", "example"].map(str::to_owned).to_vec();
        let wire = http_route::HostMatch {
            r#match: Some(host_match::Match::Suffix(host_match::Suffix { reverse_labels: labels })),
        };
        assert_eq!(host(wire), Ok(HostMatch::Suffix(vec!["example".to_owned(), "com".to_owned()])));
        assert!(host(http_route::HostMatch { r#match: None }).is_err());
        assert!(suffix_host(vec![String::new()]).is_err());
    }

    #[test]
    fn grpc_routes_are_posts_on_paths() {
        for (service, method, expected) in [
            ("", "", None),
            ("pkg.Svc", "", Some(PathMatch::Prefix("/pkg.Svc".to_owned()))),
            ("pkg.Svc", "Get", Some(PathMatch::Exact("/pkg.Svc/Get".to_owned()))),
            ("", "Get", Some(PathMatch::AnyService("Get".to_owned()))),
        ] {
            let rpc = grpc_route::GrpcRpcMatch { service: service.to_owned(), method: method.to_owned() };
            let wire = grpc_route::GrpcRouteMatch { rpc: Some(rpc), headers: Vec::new() };
            let read = grpc_match(&mut Reading::new(), wire).unwrap();
            assert_eq!((read.path, read.method.as_deref()), (expected, Some("POST")), "{service}/{method}");
        }
    }

    #[test]
    fn regexes_cover_the_whole_value() {
        let anchored = regex(&mut Reading::new(), "a|bc").unwrap();
        for (text, expected) in [("a", true), ("bc", true), ("ac", false), ("abc", false), ("xa", false)] {
            assert_eq!(anchored.is_match(text), expected, "{text}");
        }
    }

    #[test]
    fn regexes_are_bounded_in_size_and_number() {
        let mut reading = Reading::new();
        assert!(regex(&mut reading, "a)|(b").is_err(), "the anchors must hold");
        assert!(regex(&mut reading, r"(\w{100}){100}").is_err());
        let refused = (0..=super::super::MAX_REGEXES).find(|_| regex(&mut reading, "a").is_err());
        assert_eq!(refused, Some(super::super::MAX_REGEXES - 2));
    }

    #[test]
    fn what_is_wrong_with_a_long_pattern_is_short() {
        let pattern = format!("({}", "a".repeat(100_000));
        let why = regex(&mut Reading::new(), &pattern).unwrap_err().to_string();
        assert!(why.len() < 300 && why.contains("unclosed group"), "{} bytes", why.len());
    }

    #[test]
    fn conditions_are_read_with_canonical_names() {
        let wire = http_route::HttpRouteMatch {
            path: Some(http_route::PathMatch { kind: Some(path_match::Kind::Prefix("/api".to_owned())) }),
            headers: vec![http_route::HeaderMatch {
                name: "X-Canary".to_owned(),
                value: Some(header_match::Value::Exact(b"yes".to_vec())),
            }],
            query_params: vec![http_route::QueryParamMatch {
                name: "v".to_owned(),
                value: Some(query_param_match::Value::Exact("1".to_owned())),
            }],
            method: Some(http::Method::GET.into()),
        };
        let expected = HttpMatch {
            path: Some(PathMatch::Prefix("/api".to_owned())),
            headers: vec![("x-canary".to_owned(), ValueMatch::Exact(b"yes".to_vec()))],
            query: vec![("v".to_owned(), ValueMatch::Exact(b"1".to_vec()))],
            method: Some("GET".to_owned()),
        };
        assert_eq!(http_match(&mut Reading::new(), wire), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let path = |kind| http_route::HttpRouteMatch {
            path: Some(http_route::PathMatch { kind }),
            ..http_route::HttpRouteMatch::default()
        };
        let header = |name: &str, value| http_route::HttpRouteMatch {
            headers: vec![http_route::HeaderMatch { name: name.to_owned(), value }],
            ..http_route::HttpRouteMatch::default()
        };
        for (wire, place) in [
            (path(None), "path"),
            (path(Some(path_match::Kind::Exact("api".to_owned()))), "path"),
            (path(Some(path_match::Kind::Regex("(".to_owned()))), "path"),
            (header("bad name", Some(header_match::Value::Exact(Vec::new()))), "headers[0].name"),
            (header("x", None), "headers[0].value"),
        ] {
            assert_eq!(http_match(&mut Reading::new(), wire).unwrap_err().path(), place);
        }
    }
}
