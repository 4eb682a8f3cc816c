//! Filters, as messages meet them: compiled when a policy arrives, applied in their order. What each means is decided in
//! [`remora_core::route`].

use super::{body::Body, view::View};
use crate::fault::Fault;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header, uri};
use remora_core::route::{
    Asked, Failure, Filter, HeaderModifier, Inapplicable, Redirect, Replacement, RequestView as _, Rewrite,
    Scheme,
};
use remora_runtime::clock;

/// The filters of a rule, or of a backend.
pub struct Filters {
    steps: Vec<Step>,
    answers: Vec<Modifier>,
    /// Whether one of them has to know how much of the path the rule's prefix covers.
    pub replace_prefix: bool,
}

/// What is done with a request.
enum Step {
    Headers(Modifier),
    Redirect(Redirect),
    Fail(Failure),
    Rewrite(Rewrite),
}

/// Changes of headers.
struct Modifier {
    add: Vec<(HeaderName, HeaderValue)>,
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl Filters {
    /// `None`: there is nothing to do.
    pub fn compile(filters: &[Filter]) -> Option<Box<Self>> {
        if filters.is_empty() {
            return None;
        }
        let mut compiled = Self { steps: Vec::new(), answers: Vec::new(), replace_prefix: false };
        for filter in filters {
            let path = match filter {
                Filter::Redirect(redirect) => redirect.path.as_ref(),
                Filter::Rewrite(rewrite) => rewrite.path.as_ref(),
                Filter::Request(_) | Filter::Response(_) | Filter::Fail(_) | Filter::Mirror(_) => None,
            };
            compiled.replace_prefix |= matches!(path, Some(Replacement::Prefix(_)));
            compiled.steps.push(match filter {
                Filter::Request(modifier) => Step::Headers(Modifier::compile(modifier)),
                Filter::Redirect(redirect) => Step::Redirect(redirect.clone()),
                Filter::Fail(failure) => Step::Fail(failure.clone()),
                Filter::Rewrite(rewrite) => Step::Rewrite(rewrite.clone()),
                // What others get is `mirror`'s.
                Filter::Mirror(_) => continue,
                Filter::Response(modifier) => {
                    compiled.answers.push(Modifier::compile(modifier));
                    continue;
                }
            });
        }
        Some(Box::new(compiled))
    }

    /// Applies them to a request; an error is its answer. `prefix`: bytes of the path that the rule's prefix covers; of
    /// a path that is another one afterwards it covers nothing.
    pub fn request<B>(&self, request: &mut Request<B>, prefix: &mut Option<usize>) -> Result<(), Fault> {
        for step in &self.steps {
            match step {
                Step::Headers(modifier) => modifier.apply(request.headers_mut()),
                Step::Redirect(redirect) => self::redirect(redirect, request, *prefix)?,
                Step::Fail(failure) if failure.share.hits(clock::random()) => {
                    return Err(Fault::Injected { with: failure.with, message: failure.message.clone() });
                }
                Step::Fail(_) => {}
                Step::Rewrite(rewrite) => {
                    if self::rewrite(rewrite, request, *prefix)? {
                        *prefix = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// Applies them to a server's answer.
    pub fn response(&self, response: &mut Response<Body>) {
        for modifier in &self.answers {
            modifier.apply(response.headers_mut());
        }
    }
}

impl Modifier {
    /// Names and values were looked at when they came.
    fn compile(modifier: &HeaderModifier) -> Self {
        let field = |(name, value): &(String, Vec<u8>)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        };
        Self {
            add: modifier.add.iter().filter_map(field).collect(),
            set: modifier.set.iter().filter_map(field).collect(),
            remove: modifier
                .remove
                .iter()
                .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
                .collect(),
        }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn redirect<B>(redirect: &Redirect, request: &Request<B>, prefix: Option<usize>) -> Result<(), Fault> {
    let location = redirect.location(&asked(&View(request), prefix)).map_err(inapplicable)?;
    let Some(location) = location else { return Ok(()) };
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
    Err(Fault::Redirected { status, location: location.into() })
}

/// Whether the path is another one now.
fn rewrite<B>(rewrite: &Rewrite, request: &mut Request<B>, prefix: Option<usize>) -> Result<bool, Fault> {
    let target = rewrite.target(&asked(&View(request), prefix)).map_err(inapplicable)?;
    let mut parts = request.uri().clone().into_parts();
    let other_path = target.is_some();
    if let Some(target) = target {
        parts.path_and_query = Some(valid(uri::PathAndQuery::try_from(target))?);
    }
    if let Some(authority) = &rewrite.authority {
        let host = valid(HeaderValue::try_from(authority.as_str()))?;
        if parts.authority.is_some() {
            parts.authority = Some(valid(uri::Authority::try_from(authority.as_str()))?);
        }
        // HTTP/2 says it in its target alone.
        if parts.authority.is_none() || request.headers().contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, host);
        }
    }
    *request.uri_mut() = valid(Uri::from_parts(parts))?;
    Ok(other_path)
}

fn asked<'a, B>(view: &'a View<'_, B>, prefix: Option<usize>) -> Asked<'a> {
    let https = view.0.uri().scheme() == Some(&uri::Scheme::HTTPS);
    Asked {
        scheme: if https { Scheme::Https } else { Scheme::Http },
        authority: view.authority(),
        path: view.path(),
        query: view.query(),
        prefix,
    }
}

/// The policy is to blame: no filter that cannot be applied is skipped.
fn inapplicable(why: Inapplicable) -> Fault {
    Fault::InvalidPolicy { target: "this route".into(), reason: why.to_string().into() }
}

fn valid<T, E: std::fmt::Display>(made: Result<T, E>) -> Result<T, Fault> {
    made.map_err(|error| Fault::InvalidPolicy {
        target: "this route".into(),
        reason: format!("a filter makes what cannot be sent: {error}").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Version;
    use remora_core::route::{FailWith, Ratio};

    #[test]
    fn headers_are_added_set_and_removed_in_this_order() {
        let modifier = HeaderModifier {
            add: vec![("x-a".into(), b"2".to_vec()), ("x-b".into(), b"1".to_vec())],
            set: vec![("x-b".into(), b"2".to_vec()), ("x-c".into(), b"3".to_vec())],
            remove: vec!["x-gone".into(), "x-none".into()],
        };
        let request = get("/", &[("x-a", "1"), ("x-c", "1"), ("x-c", "2"), ("x-gone", "1")]);
        let request = applied(&[Filter::Request(modifier.clone())], request, None).unwrap();
        let of = |headers: &HeaderMap| {
            let mut all: Vec<String> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .filter(|line| line.starts_with("x-"))
                .collect();
            all.sort();
            all
        };
        assert_eq!(of(request.headers()), ["x-a: 1", "x-a: 2", "x-b: 2", "x-c: 3"]);

        let filters = Filters::compile(&[Filter::Response(modifier)]).unwrap();
        let mut response = Response::builder().header("x-gone", "1").body(Body::absent()).unwrap();
        filters.response(&mut response);
        assert_eq!(of(response.headers()), ["x-a: 2", "x-b: 2", "x-c: 3"]);
    }

    #[test]
    fn a_host_is_rewritten_where_the_request_says_it() {
        let rewrite = Rewrite { authority: Some("api.example".into()), path: None };
        let filters = [Filter::Rewrite(rewrite)];
        let request = applied(&filters, get("/a?b", &[("host", "web")]), None).unwrap();
        assert_eq!((request.uri().to_string().as_str(), host(&request)), ("/a?b", Some("api.example")));
        let absolute = get("http://web:80/a", &[("host", "web:80")]);
        let request = applied(&filters, absolute, None).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), host(&request)),
            ("http://api.example/a", Some("api.example"))
        );
        let mut http2 = get("http://web:80/a", &[]);
        *http2.version_mut() = Version::HTTP_2;
        let request = applied(&filters, http2, None).unwrap();
        assert_eq!((request.uri().to_string().as_str(), host(&request)), ("http://api.example/a", None));
    }

    #[test]
    fn a_path_is_rewritten_and_its_query_stays() {
        let rewrite = |path| [Filter::Rewrite(Rewrite { authority: None, path: Some(path) })];
        let whole = rewrite(Replacement::Whole("/b".into()));
        let request = applied(&whole, get("/a/x?q=1", &[]), None).unwrap();
        assert_eq!(request.uri(), "/b?q=1");
        let prefix = rewrite(Replacement::Prefix("/v2/".into()));
        let request = applied(&prefix, get("/a/x?q=1", &[]), Some(2)).unwrap();
        assert_eq!(request.uri(), "/v2/x?q=1");
        let unmatched = applied(&prefix, get("/a/x", &[]), None).unwrap_err();
        assert_eq!(unmatched.answer().status, 500, "{unmatched}");
    }

    #[test]
    fn a_prefix_is_replaced_once() {
        let rewrite = Rewrite { authority: None, path: Some(Replacement::Prefix("/v2".into())) };
        let filters = Filters::compile(&[Filter::Rewrite(rewrite)]).unwrap();
        let (mut request, mut prefix) = (get("/a/x", &[]), Some(2));
        filters.request(&mut request, &mut prefix).unwrap();
        assert_eq!((request.uri().path(), prefix), ("/v2/x", None));
        assert!(filters.replace_prefix);
    }

    #[test]
    fn redirects_and_failures_are_answers() {
        let redirect =
            Redirect { scheme: Some(Scheme::Https), host: None, port: Some(8443), path: None, status: 307 };
        let redirect = [Filter::Redirect(redirect)];
        let answer = applied(&redirect, get("/a?b", &[("host", "web:80")]), None).unwrap_err();
        let Fault::Redirected { status, location } = answer else { panic!("{answer}") };
        assert_eq!((status.as_u16(), &*location), (307, "https://web:8443/a?b"));

        let fail = |share| [Filter::Fail(Failure { with: FailWith::Http(503), message: "no".into(), share })];
        let answer = applied(&fail(Ratio::ALL), get("/", &[]), None).unwrap_err();
        assert_eq!((answer.answer().status.as_u16(), answer.to_string().as_str()), (503, "no"));
        assert!(applied(&fail(Ratio::new(0, 1).unwrap()), get("/", &[]), None).is_ok());
    }

    fn applied(
        filters: &[Filter],
        mut request: Request<()>,
        mut prefix: Option<usize>,
    ) -> Result<Request<()>, Fault> {
        Filters::compile(filters).unwrap().request(&mut request, &mut prefix)?;
        Ok(request)
    }

    fn get(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().uri(uri);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    fn host(request: &Request<()>) -> Option<&str> {
        request.headers().get("host").map(|host| host.to_str().unwrap())
    }
}
