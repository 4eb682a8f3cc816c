//! Filters of routes and of their backends. Contract 4.1.

use super::{Invalid, Reading, parts::shown};
use linkerd2_proxy_api::{grpc_route as wire_grpc, http_route as wire, http_types, inbound, outbound};
use remora_core::route::{
    FailWith, Failure, Filter, HeaderModifier, Ratio, Redirect, Replacement, Rewrite, Scheme, Untouchable,
    may_modify,
};

/// The filters of an HTTP route's rule or backend.
pub(super) fn http(
    reading: &mut Reading,
    wire: Vec<outbound::http_route::Filter>,
) -> Result<Vec<Filter>, Invalid> {
    use outbound::http_route::filter::Kind;
    let read = |reading: &mut Reading, filter: outbound::http_route::Filter| match filter.kind {
        Some(Kind::FailureInjector(failure)) => {
            reading.at("failure_injector", |reading| http_failure(reading, &failure)).map(one)
        }
        Some(Kind::RequestHeaderModifier(modifier)) => {
            reading.at("request_header_modifier", |reading| request_modifier(reading, modifier))
        }
        Some(Kind::Redirect(redirect)) => reading.at("redirect", |_| self::redirect(redirect)).map(one),
        Some(Kind::ResponseHeaderModifier(modifier)) => {
            reading.at("response_header_modifier", |reading| response_modifier(reading, modifier)).map(one)
        }
        None => Err(unknown()),
    };
    Ok(reading.each("filters", wire, read)?.into_iter().flatten().collect())
}

/// The filters of a gRPC route's rule or backend.
pub(super) fn grpc(
    reading: &mut Reading,
    wire: Vec<outbound::grpc_route::Filter>,
) -> Result<Vec<Filter>, Invalid> {
    use outbound::grpc_route::filter::Kind;
    let read = |reading: &mut Reading, filter: outbound::grpc_route::Filter| match filter.kind {
        Some(Kind::FailureInjector(failure)) => {
            reading.at("failure_injector", |reading| grpc_failure(reading, &failure)).map(one)
        }
        Some(Kind::RequestHeaderModifier(modifier)) => {
            reading.at("request_header_modifier", |reading| request_modifier(reading, modifier))
        }
        None => Err(unknown()),
    };
    Ok(reading.each("filters", wire, read)?.into_iter().flatten().collect())
}

/// The filters of an HTTP route's rule at a Server: the outbound ones but for what an answer's headers become.
pub(super) fn inbound_http(
    reading: &mut Reading,
    wire: Vec<inbound::http_route::Filter>,
) -> Result<Vec<Filter>, Invalid> {
    use inbound::http_route::filter::Kind as Said;
    use outbound::http_route::filter::Kind;
    let same = |filter: inbound::http_route::Filter| outbound::http_route::Filter {
        kind: filter.kind.map(|kind| match kind {
            Said::FailureInjector(failure) => Kind::FailureInjector(failure),
            Said::RequestHeaderModifier(modifier) => Kind::RequestHeaderModifier(modifier),
            Said::Redirect(redirect) => Kind::Redirect(redirect),
        }),
    };
    http(reading, wire.into_iter().map(same).collect())
}

/// The filters of a gRPC route's rule at a Server.
pub(super) fn inbound_grpc(
    reading: &mut Reading,
    wire: Vec<inbound::grpc_route::Filter>,
) -> Result<Vec<Filter>, Invalid> {
    use inbound::grpc_route::filter::Kind as Said;
    use outbound::grpc_route::filter::Kind;
    let same = |filter: inbound::grpc_route::Filter| outbound::grpc_route::Filter {
        kind: filter.kind.map(|kind| match kind {
            Said::FailureInjector(failure) => Kind::FailureInjector(failure),
            Said::RequestHeaderModifier(modifier) => Kind::RequestHeaderModifier(modifier),
        }),
    };
    grpc(reading, wire.into_iter().map(same).collect())
}

fn one(filter: Filter) -> Vec<Filter> {
    vec![filter]
}

/// A filter that is not understood must not be skipped (Gateway API, HTTPRouteFilter).
pub(super) fn unknown() -> Invalid {
    Invalid::new("a filter of a kind that this proxy does not know")
}

/// To set `host` is to rewrite it: what requests say is one, whether in `Host` or in `:authority`.
fn request_modifier(
    reading: &mut Reading,
    wire: wire::RequestHeaderModifier,
) -> Result<Vec<Filter>, Invalid> {
    let mut modifier = HeaderModifier {
        add: headers(reading, "add", wire.add, may_modify)?,
        set: headers(reading, "set", wire.set, |name| match may_modify(name) {
            Err(Untouchable::Host) => Ok(()),
            other => other,
        })?,
        remove: names(reading, wire.remove)?,
    };
    let mut authority = None;
    let mut wrong = None;
    modifier.set.retain(|(name, value)| {
        if name == "host" {
            match self::authority(value) {
                Ok(host) => authority = Some(host),
                Err(invalid) => wrong = Some(invalid.within("set")),
            }
        }
        name != "host"
    });
    if let Some(invalid) = wrong {
        return Err(invalid);
    }
    let rewrite = authority.map(|host| Filter::Rewrite(Rewrite { authority: Some(host), path: None }));
    Ok([Some(Filter::Request(modifier)), rewrite].into_iter().flatten().collect())
}

pub(super) fn response_modifier(
    reading: &mut Reading,
    wire: wire::ResponseHeaderModifier,
) -> Result<Filter, Invalid> {
    Ok(Filter::Response(HeaderModifier {
        add: headers(reading, "add", wire.add, may_modify)?,
        set: headers(reading, "set", wire.set, may_modify)?,
        remove: names(reading, wire.remove)?,
    }))
}

fn headers(
    reading: &mut Reading,
    place: &str,
    wire: Option<http_types::Headers>,
    allowed: impl Fn(&str) -> Result<(), Untouchable>,
) -> Result<Vec<(String, Vec<u8>)>, Invalid> {
    let wire = wire.map(|wire| wire.headers).unwrap_or_default();
    reading.each(place, wire, |_, header| {
        let name = name(&header.name, &allowed)?;
        // As it is written into messages.
        http::HeaderValue::from_bytes(&header.value)
            .map_err(|_| Invalid::new("a value with a control character").within("value"))?;
        Ok((name, header.value))
    })
}

fn names(reading: &mut Reading, wire: Vec<String>) -> Result<Vec<String>, Invalid> {
    reading.each("remove", wire, |_, wire| name(&wire, may_modify))
}

fn name(wire: &str, allowed: impl Fn(&str) -> Result<(), Untouchable>) -> Result<String, Invalid> {
    let name = http::HeaderName::from_bytes(wire.as_bytes())
        .map_err(|_| Invalid::new(format!("{:?} is no header name", shown(wire))))?;
    allowed(name.as_str()).map_err(|why| Invalid::new(format!("{name} cannot be modified: {why}")))?;
    Ok(name.as_str().to_owned())
}

/// A host, and perhaps a port.
pub(super) fn authority(value: &[u8]) -> Result<String, Invalid> {
    let authority = http::uri::Authority::try_from(value)
        .map_err(|_| Invalid::new(format!("{:?} is no host", shown(&String::from_utf8_lossy(value)))))?;
    Ok(authority.as_str().to_owned())
}

fn redirect(wire: wire::RequestRedirect) -> Result<Filter, Invalid> {
    let scheme = wire.scheme.map(scheme).transpose().map_err(|invalid| invalid.within("scheme"))?;
    let host = match wire.host.as_str() {
        "" => None,
        host => {
            let host = authority(host.as_bytes()).map_err(|invalid| invalid.within("host"))?;
            if host.contains(':') && !host.ends_with(']') {
                return Err(Invalid::new("a host with a port").within("host"));
            }
            Some(host)
        }
    };
    let port = match u16::try_from(wire.port) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => return Err(Invalid::new(format!("{} is no port", wire.port)).within("port")),
    };
    let status = match wire.status {
        0 => 301,
        status @ (301 | 302 | 303 | 307 | 308) => status as u16,
        other => return Err(Invalid::new(format!("{other} is no redirect")).within("status")),
    };
    let path = wire.path.and_then(|path| path.replace);
    let path = path.map(replacement).transpose().map_err(|invalid| invalid.within("path"))?;
    Ok(Filter::Redirect(Redirect { scheme, host, port, path, status }))
}

fn scheme(wire: http_types::Scheme) -> Result<Scheme, Invalid> {
    let scheme = http::uri::Scheme::try_from(wire).map_err(|error| Invalid::new(error.to_string()))?;
    match scheme.as_str() {
        "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        other => Err(Invalid::new(format!("{:?} is neither http nor https", shown(other)))),
    }
}

/// A path, and perhaps a query.
pub(super) fn target(path: &str) -> Result<http::uri::PathAndQuery, Invalid> {
    let absolute = path.starts_with('/') && !path.contains('#');
    let target = absolute.then(|| http::uri::PathAndQuery::try_from(path).ok()).flatten();
    target.ok_or_else(|| Invalid::new(format!("{:?} is no path", shown(path))))
}

fn replacement(wire: wire::path_modifier::Replace) -> Result<Replacement, Invalid> {
    use wire::path_modifier::Replace;
    Ok(match wire {
        Replace::Full(path) => {
            target(&path)?;
            Replacement::Whole(path)
        }
        Replace::Prefix(prefix) if prefix.is_empty() => Replacement::Prefix(prefix),
        Replace::Prefix(prefix) => {
            if target(&prefix)?.query().is_some() {
                return Err(Invalid::new("a prefix with a query"));
            }
            Replacement::Prefix(prefix)
        }
    })
}

fn http_failure(reading: &mut Reading, wire: &wire::HttpFailureInjector) -> Result<Filter, Invalid> {
    let status = match wire.status {
        status @ 200..=599 => status as u16,
        other => {
            return Err(Invalid::new(format!("{other} is no status of an answer")).within("status"));
        }
    };
    failure(reading, FailWith::Http(status), &wire.message, wire.ratio)
}

fn grpc_failure(reading: &mut Reading, wire: &wire_grpc::GrpcFailureInjector) -> Result<Filter, Invalid> {
    let code = match wire.code {
        code @ 0..=16 => code as u16,
        other => return Err(Invalid::new(format!("{other} is no gRPC status")).within("code")),
    };
    failure(reading, FailWith::Grpc(code), &wire.message, wire.ratio)
}

fn failure(
    reading: &mut Reading,
    with: FailWith,
    message: &str,
    ratio: Option<wire::Ratio>,
) -> Result<Filter, Invalid> {
    let share = match ratio {
        None => Ratio::ALL,
        Some(wire::Ratio { numerator, denominator }) => reading.at("ratio", |_| {
            Ratio::new(numerator, denominator)
                .ok_or_else(|| Invalid::new(format!("{numerator} of {denominator} is no share")))
        })?,
    };
    Ok(Filter::Fail(Failure { with, message: message.into(), share }))
}

#[cfg(test)]
mod tests;
