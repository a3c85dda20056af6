//! Fields of stored documents that this version does not know: a newer one wrote them, and a rewrite keeps them.
//!
//! They are found when a document is read, by what it would say if this version had written it, and put back where
//! this version writes it anew. Almost always there are none, and then nothing is held. What is inside a list is not
//! kept: an element has no name by which it would be found again.

use rung_model::Document;
use serde_json::Value;

/// Where the unknown fields of one document are, and what they hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Unknown(Vec<(Vec<String>, Value)>);

impl Unknown {
    /// What `raw` says beyond `known`, which was read from it.
    pub(crate) fn of<T: Document + PartialEq>(raw: &[u8], known: &T) -> Self {
        let written = known.to_json();
        if written == raw {
            return Self::default();
        }
        let (Ok(Value::Object(raw)), Ok(ours)) =
            (serde_json::from_slice(raw), serde_json::from_slice(&written))
        else {
            return Self::default();
        };
        let mut found = Self::default();
        found.gather(&raw, &ours, &mut Vec::new());
        // Whatever it is that was found: with it the document must say the same to this version.
        let again = T::from_json(&found.put_back(written));
        if again.is_ok_and(|again| again == *known) { found } else { Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn gather(&mut self, raw: &serde_json::Map<String, Value>, ours: &Value, path: &mut Vec<String>) {
        for (name, value) in raw {
            path.push(name.clone());
            match (ours.get(name), value) {
                (None, value) => self.0.push((path.clone(), value.clone())),
                (Some(ours), Value::Object(inner)) => self.gather(inner, ours, path),
                (Some(_), _) => {}
            }
            path.pop();
        }
    }

    /// The document with the fields in their places, as far as these are there still.
    pub(crate) fn put_back(&self, document: Vec<u8>) -> Vec<u8> {
        let mut whole: Value = serde_json::from_slice(&document).expect("a document is JSON");
        for (path, value) in &self.0 {
            let (Some(name), Some(above)) = (path.last(), path.len().checked_sub(1)) else { continue };
            let place = path[..above].iter().try_fold(&mut whole, |at, name| at.get_mut(name));
            if let Some(Value::Object(fields)) = place {
                fields.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        serde_json::to_vec(&whole).expect("a value of JSON serializes")
    }
}

/// A document that is in no [`World`](crate::World), as it is to be stored anew: with what the stored one has and this
/// version, which read it as `known`, does not know.
pub fn rewrite<T>(stored: &[u8], known: &T, now: &T) -> Vec<u8>
where
    T: Document + PartialEq,
{
    Unknown::of(stored, known).put_back(now.to_json())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Paper {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<Place>,
        #[serde(default)]
        counts: BTreeMap<String, u32>,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Place {
        #[serde(alias = "zone")]
        room: String,
    }

    rung_model::documents!(Paper);

    fn read(raw: &str) -> (Paper, Unknown) {
        let document = Paper::from_json(raw.as_bytes()).unwrap();
        let unknown = Unknown::of(raw.as_bytes(), &document);
        (document, unknown)
    }

    fn write(unknown: &Unknown, document: &Paper) -> Value {
        serde_json::from_slice(&unknown.put_back(document.to_json())).unwrap()
    }

    #[test]
    fn unknown_fields_are_put_back_where_they_were() {
        let raw = r#"{"name":"a","colour":{"r":1},"place":{"room":"x","floor":3},"counts":{"one":1}}"#;
        let (mut document, unknown) = read(raw);
        document.name = "b".into();
        document.counts.clear();
        let expected = serde_json::json!(
            {"name": "b", "colour": {"r": 1}, "place": {"room": "x", "floor": 3}, "counts": {}}
        );
        assert_eq!(write(&unknown, &document), expected);
        document.place = None;
        let expected = serde_json::json!({"name": "b", "colour": {"r": 1}, "counts": {}});
        assert_eq!(write(&unknown, &document), expected, "what they belonged to is gone, and they with it");
    }

    #[test]
    fn a_document_outside_of_the_index_is_rewritten_with_its_unknown_fields() {
        let raw = r#"{"name":"a","colour":"red","place":{"room":"x","floor":3}}"#;
        let (known, _) = read(raw);
        let now = Paper { name: "b".into(), ..known.clone() };
        let written: Value = serde_json::from_slice(&rewrite(raw.as_bytes(), &known, &now)).unwrap();
        let expected = serde_json::json!(
            {"name": "b", "colour": "red", "place": {"room": "x", "floor": 3}, "counts": {}}
        );
        assert_eq!(written, expected);
    }

    #[test]
    fn what_this_version_knows_under_another_name_is_not_unknown() {
        let (_, unknown) = read(r#"{"name":"a","place":{"zone":"x"}}"#);
        assert!(unknown.is_empty(), "{unknown:?} would be said twice");
        assert!(read(r#"{"name":"a","place":null}"#).1.0.iter().all(|(_, value)| value.is_null()));
    }
}
