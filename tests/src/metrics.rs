//! The Prometheus text format, as far as a test needs it: names, labels, values.
//!
//! Pure.

use std::collections::BTreeMap;

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Everything that `/metrics` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// The samples of a name that have all these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// Their sum; nothing where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.matching(name, labels).map(|sample| sample.value).reduce(|left, right| left + right)
    }

    /// The sum of counters, which are whole numbers; 0 where there is none.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.matching(name, labels).map(|sample| sample.value as u64).sum()
    }
}

/// Lines that are not samples are skipped.
pub fn parse(text: &str) -> Samples {
    Samples(text.lines().filter_map(sample).collect())
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    // A timestamp may follow the value.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let (value, after) = quoted_value(quoted)?;
        found.insert(key.trim().to_owned(), value);
        rest = after;
    }
}

fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP requests How many.\n# TYPE requests counter\n\
        requests_total{direction=\"inbound\",note=\"a \\\"b\\\", c}\"} 3\n\
        requests_total{direction=\"outbound\"} 4 1700000000\nplain 1.5\nbroken{x=\"\n# EOF\n";

    #[test]
    fn samples_have_labels_and_values() {
        let samples = parse(TEXT);
        assert_eq!(samples.0.len(), 3);
        assert_eq!(samples.0[0].labels["note"], "a \"b\", c}");
        assert_eq!(samples.sum("plain", &[]), Some(1.5));
    }

    #[test]
    fn sums_are_over_what_matches_and_nothing_is_not_zero() {
        let samples = parse(TEXT);
        assert_eq!(samples.sum("requests_total", &[]), Some(7.0));
        assert_eq!(samples.sum("requests_total", &[("direction", "inbound")]), Some(3.0));
        assert_eq!(samples.sum("requests_total", &[("direction", "none")]), None);
    }
}
