//! Gateway API's specification of routes, read naively: HTTPRouteRule's precedence, HTTPPathModifier, HTTPRequestRedirect
//! and HTTPURLRewrite, and the design's rule about paths. No code of `core`.

/// A route as it is written.
#[derive(Debug, Default)]
pub(super) struct Written<'a> {
    pub(super) hosts: Vec<&'a str>,
    pub(super) rules: Vec<Rule<'a>>,
}

#[derive(Debug, Default)]
pub(super) struct Rule<'a> {
    pub(super) matches: Vec<Match<'a>>,
    pub(super) redirect: Option<Exchange<'a>>,
    pub(super) rewrite: Option<Exchange<'a>>,
}

#[derive(Debug, Default)]
pub(super) struct Match<'a> {
    pub(super) method: Option<&'a str>,
    pub(super) path: Option<(&'a str, &'a str)>,
    pub(super) headers: Vec<(&'a str, &'a str)>,
    pub(super) query: Vec<(&'a str, &'a str)>,
}

/// Parts of a URL that are exchanged.
#[derive(Debug, Default)]
pub(super) struct Exchange<'a> {
    pub(super) scheme: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    pub(super) port: Option<u16>,
    pub(super) full: Option<&'a str>,
    pub(super) prefix: Option<&'a str>,
}

#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) headers: Vec<(&'a str, &'a str)>,
}

/// The best match by the specification: (route, rule).
pub(super) fn best(routes: &[Written<'_>], request: &Request<'_>, path: &str) -> Option<(usize, usize)> {
    let mut best = None;
    let mut score = None;
    for (nth, route) in routes.iter().enumerate() {
        let Some(host) = route.host(request.authority) else { continue };
        for (rule, written) in route.rules.iter().enumerate() {
            let everything = [Match::default()];
            let matches = if written.matches.is_empty() { &everything[..] } else { &written.matches };
            for one in matches {
                let Some(specificity) = one.specificity(request, path) else { continue };
                // Strictly more specific: of equals the first one listed has it.
                if score.as_ref().is_none_or(|earlier| *earlier < (host, specificity)) {
                    score = Some((host, specificity));
                    best = Some((nth, rule));
                }
            }
        }
    }
    best
}

impl Written<'_> {
    /// Characters of the most specific host that matches, an exact one before all others.
    fn host(&self, authority: &str) -> Option<(bool, usize)> {
        if self.hosts.is_empty() {
            return Some((false, 0));
        }
        let asked = bare(authority).0.to_ascii_lowercase();
        let asked = asked.strip_suffix('.').unwrap_or(&asked);
        let matching = self.hosts.iter().filter_map(|host| {
            let host = host.to_ascii_lowercase();
            match host.strip_prefix("*.") {
                Some(suffix) => {
                    let label = asked.strip_suffix(suffix)?.strip_suffix('.')?;
                    let last = label.rsplit('.').next()?;
                    (!last.is_empty()).then_some((false, suffix.len() + 1))
                }
                None => (host.strip_suffix('.').unwrap_or(&host) == asked).then_some((true, 0)),
            }
        });
        matching.max()
    }
}

impl Match<'_> {
    /// Exact path, characters of the path, method, headers, query.
    fn specificity(&self, request: &Request<'_>, path: &str) -> Option<(bool, usize, bool, usize, usize)> {
        let (exact, characters) = match self.path {
            None => (false, 1),
            Some(("exact", exact)) => (path == exact).then_some((true, exact.len()))?,
            Some(("prefix", prefix)) => {
                let (wanted, there) = (elements(prefix.trim_end_matches('/')), elements(path));
                let starts = there.len() >= wanted.len() && there[..wanted.len()] == wanted[..];
                let all = wanted.is_empty();
                (starts || all).then(|| (false, prefix.trim_end_matches('/').len().max(1)))?
            }
            Some((_, pattern)) => {
                let whole = regex::Regex::new(&format!(r"\A(?:{pattern})\z")).ok()?;
                whole.is_match(path).then_some((false, path.len()))?
            }
        };
        let has = |(name, value): &(&str, &str)| {
            request.headers.iter().any(|(other, there)| other.eq_ignore_ascii_case(name) && there == value)
        };
        let asks = |(name, value): &(&str, &str)| {
            let pairs = request.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.any(|(other, there)| form(other) == name.as_bytes() && form(there) == value.as_bytes())
        };
        let holds = self.method.is_none_or(|method| method == request.method)
            && self.headers.iter().all(has)
            && self.query.iter().all(asks);
        holds.then_some((exact, characters, self.method.is_some(), self.headers.len(), self.query.len()))
    }
}

impl Rule<'_> {
    /// Elements that the prefix of the rule's best match covers; `None` if that is not by prefix.
    pub(super) fn prefix(&self, request: &Request<'_>) -> Option<usize> {
        let mut best: Option<(_, Option<(&str, &str)>)> = None;
        for one in &self.matches {
            let Some(specificity) = one.specificity(request, request.path) else { continue };
            if best.is_none_or(|(earlier, _)| earlier < specificity) {
                best = Some((specificity, one.path));
            }
        }
        match best.and_then(|(_, path)| path) {
            None => Some(0),
            Some(("prefix", prefix)) => Some(elements(prefix.trim_end_matches('/')).len()),
            Some(_) => None,
        }
    }
}

impl Exchange<'_> {
    /// Path and query after the exchange; `None`: it cannot be made.
    pub(super) fn target(&self, request: &Request<'_>, covered: Option<usize>) -> Option<String> {
        let (path, target) = split(request);
        let path = match (self.full, self.prefix) {
            _ if !path.starts_with('/') => return Some(target),
            (Some(full), _) => full.to_owned(),
            (None, Some(prefix)) => {
                let mut replaced = prefix.trim_end_matches('/').to_owned();
                for element in elements(path).into_iter().skip(covered?) {
                    replaced.push('/');
                    replaced.push_str(element);
                }
                if replaced.is_empty() { "/".to_owned() } else { replaced }
            }
            (None, None) => return Some(target),
        };
        Some(match request.query {
            Some(query) if !path.contains('?') => format!("{path}?{query}"),
            _ => path,
        })
    }

    /// Where a redirect leads; `None`: where the request is. An error: nowhere.
    pub(super) fn location(
        &self,
        request: &Request<'_>,
        covered: Option<usize>,
    ) -> Result<Option<String>, ()> {
        let (asked_host, asked_port) = bare(request.authority);
        let host = self.host.unwrap_or(asked_host);
        if host.is_empty() {
            return Err(());
        }
        let usual = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        let scheme = self.scheme.unwrap_or("http");
        let port = self.port.unwrap_or_else(|| match self.scheme {
            Some(scheme) => usual(scheme),
            None => asked_port.unwrap_or(80),
        });
        let (_, as_asked) = split(request);
        let target = self.target(request, covered).ok_or(())?;
        let plain = |host: &str| host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if scheme == "http"
            && plain(host) == plain(asked_host)
            && port == asked_port.unwrap_or(80)
            && target == as_asked
        {
            return Ok(None);
        }
        let target = if target.starts_with('/') { target } else { "/".to_owned() };
        let port = if port == usual(scheme) { String::new() } else { format!(":{port}") };
        Ok(Some(format!("{scheme}://{host}{port}{target}")))
    }
}

/// Path, and path with query.
pub(super) fn split<'a>(request: &Request<'a>) -> (&'a str, String) {
    let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
    (request.path, format!("{}{query}", request.path))
}

/// The elements of a path: nothing has none.
fn elements(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// Host and port of an authority.
fn bare(authority: &str) -> (&str, Option<u16>) {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => (&authority[..at], authority[at + 1..].parse().ok()),
        _ => (authority, None),
    }
}

/// As `application/x-www-form-urlencoded` has it.
fn form(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (bytes[at], code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    decoded
}

/// A path as the design says that a lenient server reads it, one rewriting after the other.
pub(super) fn normalised(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let before = path.split('#').next().unwrap_or_default();
    let mut pieces = before.split('%');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).filter(|code| code.chars().all(|digit| digit.is_ascii_hexdigit()));
        let character = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        let known = character.filter(|one| one.is_ascii_alphanumeric() || "-._~/\\;".contains(*one));
        text.push(known.unwrap_or('%'));
        text.push_str(known.map_or(piece, |_| &piece[2..]));
    }
    let text = text.replace('\\', "/");
    let names: Vec<&str> =
        text.split('/').skip(1).map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    let closed = names.last().is_some_and(|last| !["", ".", ".."].contains(last));
    let mut kept: Vec<&str> = Vec::new();
    for name in names {
        match name {
            ".." => {
                kept.pop();
            }
            "" | "." => {}
            name => kept.push(name),
        }
    }
    match (kept.is_empty(), closed) {
        (true, _) => "/".to_owned(),
        (false, true) => format!("/{}", kept.join("/")),
        (false, false) => format!("/{}/", kept.join("/")),
    }
}
