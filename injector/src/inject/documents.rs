//! Pure. A stream of YAML documents: taken apart without a parser, so that what nobody changes keeps every byte, and put
//! together with the fields of changed documents in the order in which their author wrote them.

use serde_json::Value;
use serde_norway::Value as Yaml;

use super::Output;

/// The texts between the document markers. YAML allows no `---` or `...` at the beginning of a line inside a document,
/// not even in a block of text (YAML 1.2, 9.1.2), so no parser is needed to find them.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        let marker = bare.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match (marker, documents.last_mut()) {
            (Some(rest), _) => {
                let rest = rest.trim_start();
                documents.push(if rest.is_empty() { String::new() } else { format!("{rest}\n") });
            }
            (None, _) if bare == "..." => {}
            (None, Some(document)) => document.push_str(line),
            (None, None) => {}
        }
    }
    // What stands before the first marker is no document unless there is something in it.
    if documents.len() > 1 && documents.first().is_some_and(|first| is_blank(first) && !first.contains('#')) {
        documents.remove(0);
    }
    documents
}

fn is_blank(document: &str) -> bool {
    document.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with(['#', '%']))
}

/// The object in a document; `None` if there is none.
pub(crate) fn parse(document: &str) -> Result<Option<Value>, String> {
    if is_blank(document) {
        return Ok(None);
    }
    let value: Value = serde_norway::from_str(document).map_err(|error| format!("not YAML: {error}"))?;
    match value {
        Value::Null => Ok(None),
        Value::Object(_) => Ok(Some(value)),
        _ => Err("not a Kubernetes object: it is not a map".to_owned()),
    }
}

/// Documents on their way out.
pub(super) struct Writer {
    output: Output,
    documents: Vec<String>,
}

impl Writer {
    pub(super) fn new(output: Output) -> Self {
        Self { output, documents: Vec::new() }
    }

    /// A document as it came. There are no comments in JSON, and so no document that is nothing else.
    pub(super) fn verbatim(&mut self, document: &str) {
        if self.output == Output::Yaml && !document.trim().is_empty() {
            let end = if document.ends_with('\n') { "" } else { "\n" };
            self.documents.push(format!("{document}{end}"));
        }
    }

    /// A document whose object has changed.
    pub(super) fn changed(&mut self, document: &str, object: &Value) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot be written: {error}");
        self.documents.push(match self.output {
            Output::Json => {
                let mut text = serde_json::to_string_pretty(object).map_err(|error| failed(&error))?;
                text.push('\n');
                text
            }
            Output::Yaml => {
                let original: Yaml = serde_norway::from_str(document).map_err(|error| failed(&error))?;
                write_yaml(in_order_of(&original, object)).map_err(|error| failed(&error))?
            }
        });
        Ok(())
    }

    pub(super) fn finish(self) -> String {
        let separator = if self.output == Output::Yaml { "---\n" } else { "" };
        self.documents.join(separator)
    }
}

/// `changed` with the fields of every map in the order of `original`, and new ones after them. Entries of lists are
/// matched by their names, as Kubernetes' lists of containers and volumes have them, else by their positions.
fn in_order_of(original: &Yaml, changed: &Value) -> Yaml {
    match changed {
        Value::Object(fields) => {
            let old = original.as_mapping();
            let mut ordered = serde_norway::Mapping::new();
            for (name, before) in old.into_iter().flatten() {
                if let Some(after) = name.as_str().and_then(|name| fields.get(name)) {
                    ordered.insert(name.clone(), in_order_of(before, after));
                }
            }
            for (name, after) in fields {
                if !ordered.contains_key(name) {
                    ordered.insert(Yaml::from(name.as_str()), in_order_of(&Yaml::Null, after));
                }
            }
            Yaml::Mapping(ordered)
        }
        Value::Array(entries) => {
            let old: &[Yaml] = original.as_sequence().map_or(&[], Vec::as_slice);
            let matching = |index: usize, entry: &Value| match entry.get("name").and_then(Value::as_str) {
                Some(name) => old.iter().find(|old| old.get("name").and_then(Yaml::as_str) == Some(name)),
                None => old.get(index),
            };
            let ordered = entries.iter().enumerate();
            ordered
                .map(|(index, entry)| in_order_of(matching(index, entry).unwrap_or(&Yaml::Null), entry))
                .collect()
        }
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Bool(*value),
        Value::String(text) => Yaml::String(text.clone()),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => Yaml::from(number),
            (_, Some(number), _) => Yaml::from(number),
            (_, _, number) => Yaml::from(number.unwrap_or_default()),
        },
    }
}

/// Writes YAML that YAML 1.1 reads as YAML 1.2 does. kubectl reads 1.1, where a plain `yes` is a boolean and `12:30` a
/// number; the library writes 1.2, where both are text. So such texts are written as placeholders, and these replaced by
/// the texts in double quotes (JSON's strings are YAML's).
fn write_yaml(mut value: Yaml) -> Result<String, serde_norway::Error> {
    let plain = serde_norway::to_string(&value)?;
    let mut mark = "remora-quoted".to_owned();
    while plain.contains(&mark) {
        mark.push('x');
    }
    let mut hidden = Vec::new();
    hide(&mut value, &mark, &mut hidden);
    let marked = serde_norway::to_string(&value)?;
    let quoted = |text: &String| Value::from(text.as_str()).to_string();
    Ok(hidden.iter().fold(marked, |written, (mark, text)| written.replace(mark, &quoted(text))))
}

/// Replaces every ambiguous text, also in names of fields, by a mark of its own that begins with `mark`.
fn hide(value: &mut Yaml, mark: &str, hidden: &mut Vec<(String, String)>) {
    match value {
        Yaml::String(text) if is_ambiguous(text) => {
            let own = format!("{mark}-{}-", hidden.len());
            hidden.push((own.clone(), std::mem::replace(text, own)));
        }
        Yaml::Sequence(entries) => entries.iter_mut().for_each(|entry| hide(entry, mark, hidden)),
        Yaml::Mapping(fields) => {
            for (mut name, mut field) in std::mem::take(fields) {
                hide(&mut name, mark, hidden);
                hide(&mut field, mark, hidden);
                fields.insert(name, field);
            }
        }
        _ => {}
    }
}

/// Whether YAML 1.1 could take a plain text for a boolean, a number, a date, a merge or a default. Too often is harmless.
fn is_ambiguous(text: &str) -> bool {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"];
    WORDS.contains(&text.to_lowercase().as_str())
        || text == "="
        || text == "<<"
        || (text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            && text.chars().all(|c| c.is_ascii_hexdigit() || "xXoO_:.+-TtZz ".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_their_markers_alone() {
        let text = "# head\n---\na: |\n  ---\n  x\n--- # two\nb: 1\n...\n---\n---x: 1\n";
        assert_eq!(split(text), ["# head\n", "a: |\n  ---\n  x\n", "# two\nb: 1\n", "---x: 1\n"]);
        assert_eq!(split("\n---\na: 1"), ["a: 1"]);
        assert_eq!(split("a: 1"), ["a: 1"]);
        assert_eq!(split(""), [""]);
    }

    /// Texts that YAML 1.1, which kubectl reads, takes for something else when they are not quoted.
    #[test]
    fn texts_stay_texts_for_kubectl() {
        for text in [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
            "Yes",
            "NO",
            "true",
            "null",
            "~",
            "",
            "1",
            "1.0",
            "0x1F",
            "0777",
            "0o17",
            "1e3",
            "1_000",
            "12:30:45",
            "2026-11-23",
            ".inf",
            "=",
            "<<",
            "- a",
            "a: b",
            "#",
            "!x",
            "&a",
            "*a",
            "[",
            "{",
            "@",
            "`",
            "%",
            " lead",
            "trail ",
            "multi\nline\n",
            "tab\t",
            "-",
            "?",
            ":",
            "0b1",
            "+1",
            ".5",
            "1.",
            "N",
            "Off",
        ] {
            let value = serde_json::json!({"a": text, "b": [text, "remora-quoted"], "c": {text: 1}});
            let written = write_yaml(in_order_of(&Yaml::Null, &value)).unwrap();
            let bare = written.contains(&format!("a: {text}\n")) || written.contains(&format!("  {text}: 1"));
            assert!(!bare, "{text:?} is written without quotes: {written:?}");
            assert_eq!(serde_norway::from_str::<Value>(&written).unwrap(), value);
        }
    }

    #[test]
    fn fields_keep_their_order() {
        let original: Yaml =
            serde_norway::from_str("z: 1\nlist:\n- name: b\n  w: 1\n  v: 2\na: 2\n").unwrap();
        let changed: Value = serde_json::json!({
            "a": 2, "b": 3, "z": 1, "list": [{"name": "new"}, {"name": "b", "v": 2, "w": 1}],
        });
        let written = write_yaml(in_order_of(&original, &changed)).unwrap();
        assert_eq!(written, "z: 1\nlist:\n- name: new\n- name: b\n  w: 1\n  v: 2\na: 2\nb: 3\n");
    }
}
