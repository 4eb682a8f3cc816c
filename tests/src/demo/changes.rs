//! What the injector changed in a pod: the manifest as it was written beside the pod as it was admitted.
//!
//! Pure.

use serde_json::Value;

/// The difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Init containers that run once, with their arguments.
    pub init: Vec<(String, Vec<String>)>,
    /// Containers that stay, with how many variables their environment has.
    pub sidecars: Vec<(String, usize)>,
    pub volumes: Vec<String>,
    pub annotations: Vec<String>,
    pub labels: Vec<String>,
}

impl Changes {
    /// Nothing was changed.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// `before` is a Pod, or the template of a Deployment; `after` the pod that came of it.
pub fn changes(before: &Value, after: &Value) -> Changes {
    let added = |list: &str| -> Vec<Value> {
        let old: Vec<&str> = named(before, list).filter_map(name).collect();
        named(after, list).filter(|new| name(new).is_some_and(|new| !old.contains(&new))).cloned().collect()
    };
    let new = added("/spec/initContainers").into_iter().chain(added("/spec/containers"));
    let mut changes = Changes::default();
    for container in new {
        let called = name(&container).unwrap_or_default().to_owned();
        let stays = container.get("restartPolicy").is_some();
        let in_main = named(after, "/spec/containers").any(|main| name(main) == Some(&called));
        if stays || in_main {
            changes.sidecars.push((called, named(&container, "/env").count()));
        } else {
            let args = named(&container, "/args").filter_map(Value::as_str).map(str::to_owned);
            changes.init.push((called, args.collect()));
        }
    }
    changes.volumes = added("/spec/volumes").iter().filter_map(name).map(str::to_owned).collect();
    changes.annotations = added_keys(before, after, "/metadata/annotations");
    changes.labels = added_keys(before, after, "/metadata/labels");
    // A Deployment's controller writes this one, not the injector.
    changes.labels.retain(|label| label != "pod-template-hash");
    changes
}

fn named<'a>(object: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(list).and_then(Value::as_array).into_iter().flatten()
}

fn name(object: &Value) -> Option<&str> {
    object.get("name").and_then(Value::as_str)
}

fn added_keys(before: &Value, after: &Value, map: &str) -> Vec<String> {
    let old = before.pointer(map).and_then(Value::as_object);
    let new = after.pointer(map).and_then(Value::as_object).into_iter().flatten();
    new.filter(|(key, _)| old.is_none_or(|old| !old.contains_key(*key))).map(|(key, _)| key.clone()).collect()
}

/// `key=value` and switches of a command line, two words of one option put together: `--uid 2102`.
pub fn options(args: &[String]) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for arg in args {
        match options.last_mut().filter(|_| !arg.starts_with('-')) {
            Some(last) => {
                last.push(' ');
                last.push_str(arg);
            }
            None => options.push(arg.clone()),
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_added_is_told_and_what_was_there_is_not() {
        let found = changes(&before(), &after());
        assert_eq!(found.init, [("init".to_owned(), vec!["--uid".to_owned(), "7".to_owned()])]);
        assert_eq!(found.sidecars, [("proxy".to_owned(), 2), ("second".to_owned(), 0)]);
        assert_eq!(found.volumes, ["identity"]);
        assert_eq!(found.annotations, ["new"]);
        assert_eq!(found.labels, ["mesh"]);
    }

    #[test]
    fn a_pod_that_was_left_alone_has_no_changes() {
        assert!(changes(&before(), &before()).is_none());
        assert!(!changes(&before(), &after()).is_none());
    }

    #[test]
    fn an_option_and_its_value_are_one() {
        let args = ["--uid", "7", "--ipv6=true", "--ports", "1,2"].map(str::to_owned);
        assert_eq!(options(&args), ["--uid 7", "--ipv6=true", "--ports 1,2"]);
    }

    fn before() -> Value {
        json!({
            "metadata": {"name": "p", "annotations": {"old": "1"}},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "mine", "args": ["x"]}]},
        })
    }

    fn after() -> Value {
        json!({
            "metadata": {"annotations": {"old": "1", "new": "2"},
                         "labels": {"mesh": "yes", "pod-template-hash": "0"}},
            "spec": {
                "initContainers": [
                    {"name": "mine", "args": ["x"]},
                    {"name": "init", "args": ["--uid", "7"]},
                    {"name": "proxy", "restartPolicy": "Always", "env": [{"name": "A"}, {"name": "B"}]},
                ],
                "containers": [{"name": "app"}, {"name": "second"}],
                "volumes": [{"name": "identity"}],
            },
        })
    }
}
