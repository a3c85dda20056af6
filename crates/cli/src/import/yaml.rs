//! YAML as nodes that know their lines, with anchors and merges resolved.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// A Compose file of a thousand services is smaller; anchors that repeat anchors are larger.
const NODES_MAX: usize = 100_000;

/// Deeper than any Compose file, and shallow enough for recursion.
const DEPTH_MAX: usize = 64;

/// What is wrong with a file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub line: usize,
    pub message: String,
    pub hint: String,
}

impl Wrong {
    pub fn new(line: usize, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { line, message: message.into(), hint: hint.into() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    /// As it was written: `1.50` stays `1.50`.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// Of the key.
    pub line: usize,
    pub node: Node,
}

impl Node {
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Null | Value::Text(_) => 1,
            Value::List(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.node.size()).sum::<usize>(),
        }
    }
}

/// Reads the first document.
pub fn read(text: &str) -> Result<Node, Wrong> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    loop {
        match reader.next()? {
            (Event::StreamEnd, line) => {
                return Err(Wrong::new(line, "the file is empty", "is this the right file?"));
            }
            (Event::DocumentStart(_), _) => break,
            _ => {}
        }
    }
    let first = reader.next()?;
    reader.node(first, 0)
}

struct Reader<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize), Wrong> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(Wrong::new(
                error.marker().line(),
                format!("not YAML: {}", error.info()),
                "mind the indentation, and put texts with `: ` or ` #` in quotes",
            )),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, (event, line): (Event<'t>, usize), depth: usize) -> Result<Node, Wrong> {
        self.count(1, line)?;
        if depth > DEPTH_MAX {
            return Err(Wrong::new(line, "values are nested too deep", "a Compose file has a few levels"));
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_null = style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                (Node { line, value }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                (Node { line, value: Value::List(self.items(depth)?) }, anchor)
            }
            Event::MappingStart(anchor, _) => {
                (Node { line, value: Value::Map(self.entries(depth)?) }, anchor)
            }
            Event::Alias(anchor) => {
                let Some(known) = self.anchors.get(&anchor).cloned() else {
                    return Err(Wrong::new(
                        line,
                        "an alias stands inside of what it is an alias of",
                        "take it out",
                    ));
                };
                self.count(known.size(), line)?;
                return Ok(known);
            }
            _ => return Err(Wrong::new(line, "a value is missing", "mind the indentation")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Wrong> {
        self.nodes += nodes;
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        Err(Wrong::new(
            line,
            "the file has too many values",
            "anchors that repeat anchors grow without bound",
        ))
    }

    fn items(&mut self, depth: usize) -> Result<Vec<Node>, Wrong> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<Entry>, Wrong> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node((event, line), depth + 1)?;
            let Some(key) = key.text().map(str::to_owned) else {
                return Err(Wrong::new(line, "a key is not a text", "mind the indentation"));
            };
            let value = self.next()?;
            let node = self.node(value, depth + 1)?;
            if key == "<<" {
                merged.push(node);
            } else if entries.iter().any(|entry| entry.key == key) {
                return Err(Wrong::new(line, format!("`{key}` is there twice"), "keep one of the two"));
            } else {
                entries.push(Entry { key, line, node });
            }
        }
        for node in merged {
            let sources = if node.items().is_empty() { vec![node] } else { node.items().to_vec() };
            for entry in sources.iter().flat_map(Node::entries) {
                if !entries.iter().any(|known| known.key == entry.key) {
                    entries.push(entry.clone());
                }
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines_and_merges_are_resolved() {
        let text = "x: &base\n  a: 1\n  b: [two, \"3\"]\ny:\n  <<: *base\n  a: other\n";
        let file = read(text).unwrap();
        let y = &file.get("y").unwrap().node;
        assert_eq!(y.get("a").unwrap().node.text(), Some("other"));
        assert_eq!((y.get("a").unwrap().line, y.get("b").unwrap().line), (6, 3));
        assert_eq!(y.get("b").unwrap().node.items()[1].text(), Some("3"));
    }

    #[test]
    fn what_is_no_yaml_is_told_with_its_line() {
        assert_eq!(read("a: 1\nb: [\n").unwrap_err().line, 3);
        assert_eq!(read("a: 1\na: 2\n").unwrap_err().message, "`a` is there twice");
        assert!(read("").is_err());
        let bomb: String =
            (0..20).map(|n| format!("a{}: &a{} [*a{n}, *a{n}, *a{n}, *a{n}]\n", n + 1, n + 1)).collect();
        let refused = read(&format!("a0: &a0 [x]\n{bomb}")).unwrap_err();
        assert_eq!(refused.message, "the file has too many values");
        let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(read(&deep).unwrap_err().message, "values are nested too deep");
    }
}
