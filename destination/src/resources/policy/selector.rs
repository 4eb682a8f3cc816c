//! Pure. Label selectors, as Kubernetes has them for everything newer than Services.

use crate::resources::strict::{Mistakes, join, shown};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most requirements of a selector, and most values of one.
const MAX_REQUIREMENTS: usize = 256;

/// Labels that something must have. Without any requirement everything has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

/// One thing that a selector asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What of it.
    pub operator: Operator,
    /// Which values, for `In` and `NotIn`.
    pub values: Vec<String>,
}

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// Has something with these labels all that is asked for?
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|wanted| {
            let value = labels.get(&wanted.key);
            match wanted.operator {
                Operator::In => value.is_some_and(|value| wanted.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !wanted.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    pub(super) fn read(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Self> {
        let fields = mistakes.object(path, value, &["matchLabels", "matchExpressions"])?;
        let mut requirements = Vec::new();
        if let Some(value) = fields.get("matchLabels") {
            let at = join(path, "matchLabels");
            match value {
                Value::Object(labels) => {
                    for (key, value) in labels {
                        let Value::String(value) = value else {
                            let at = join(&at, &shown(key));
                            mistakes.add(&at, "expected a text; numbers and booleans need quotes");
                            continue;
                        };
                        let values = vec![value.clone()];
                        requirements.push(Requirement { key: key.clone(), operator: Operator::In, values });
                    }
                }
                _ => mistakes.add(&at, "expected an object"),
            }
        }
        let at = join(path, "matchExpressions");
        for (path, value) in mistakes.list(&at, fields.get("matchExpressions"), MAX_REQUIREMENTS) {
            requirements.extend(requirement(&path, value, mistakes));
        }
        Some(Self(requirements))
    }
}

fn requirement(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Requirement> {
    let operators = [
        ("In", Operator::In),
        ("NotIn", Operator::NotIn),
        ("Exists", Operator::Exists),
        ("DoesNotExist", Operator::DoesNotExist),
    ];
    let fields = mistakes.object(path, value, &["key", "operator", "values"])?;
    let key = mistakes.required(path, fields, "key");
    let key = key.and_then(|value| mistakes.text(&join(path, "key"), value));
    let operator = mistakes.required(path, fields, "operator");
    let operator = operator.and_then(|value| mistakes.one_of(&join(path, "operator"), value, &operators))?;
    let at = join(path, "values");
    let mut values = Vec::new();
    for (path, value) in mistakes.list(&at, fields.get("values"), MAX_REQUIREMENTS) {
        match value {
            Value::String(value) => values.push(value.clone()),
            _ => mistakes.add(&path, "expected a text; numbers and booleans need quotes"),
        }
    }
    let listed = fields.get("values").and_then(Value::as_array).is_some_and(|values| !values.is_empty());
    match (operator, listed) {
        (Operator::In | Operator::NotIn, false) => mistakes.add(&at, "missing or empty"),
        (Operator::Exists | Operator::DoesNotExist, true) => {
            mistakes.add(&at, "Exists and DoesNotExist have no values");
        }
        _ => {}
    }
    Some(Requirement { key: key?.to_owned(), operator, values })
}
