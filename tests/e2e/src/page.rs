//! A page of the documentation, whose commands are run where it says, and must say what it says.
//!
//! In a block of `console`, `web-1$ rung status` is a command on that machine, and the lines below are what it says.
//! `…` stands for anything: a line of it for any lines, a word with it for any word. What such a word was in truth is
//! remembered, and given to the commands that name it later: tokens and fingerprints are different each time.

use std::collections::BTreeMap;
use std::path::Path;

use crate::hosts::Hosts;
use crate::wait::eventually;

const ELLIPSIS: &str = "…";

/// A page, and who follows it.
#[derive(Debug)]
pub struct Page {
    name: String,
    lines: Vec<String>,
    /// By the word on the page, the word that was said.
    said: BTreeMap<String, String>,
    /// By machine, what was exported there.
    exported: BTreeMap<String, BTreeMap<String, String>>,
    followed: Vec<usize>,
}

/// A command of the page.
#[derive(Debug)]
struct Step {
    line: usize,
    machine: String,
    command: String,
    says: Vec<String>,
}

impl Page {
    /// # Panics
    /// When there is no such page in `docs`.
    pub fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {name}: {error}"));
        Self {
            name: name.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            said: BTreeMap::new(),
            exported: BTreeMap::new(),
            followed: Vec::new(),
        }
    }

    /// What a word of the page stands for here.
    pub fn means(&mut self, word: &str, truth: impl Into<String>) {
        self.said.insert(word.to_owned(), truth.into());
    }

    /// Runs the commands of the next block in which one begins so.
    ///
    /// # Panics
    /// When a command fails, or says something else than the page.
    pub fn follow(&mut self, hosts: &mut Hosts, beginning: &str) {
        let steps = self.block(beginning);
        assert!(!steps.is_empty(), "{}: no block has a command that begins with {beginning:?}", self.name);
        for step in steps {
            self.take(hosts, &step);
            self.followed.push(step.line);
        }
    }

    /// # Panics
    /// When a command of the page was never followed.
    pub fn was_followed(&self) {
        let steps = self.blocks().into_iter().flatten();
        let left: Vec<_> =
            steps.filter(|step| !self.followed.contains(&step.line)).map(|step| step.command).collect();
        assert!(left.is_empty(), "nobody has followed these commands of {}: {left:#?}", self.name);
    }

    fn block(&self, beginning: &str) -> Vec<Step> {
        let is_meant =
            |step: &Step| step.command.starts_with(beginning) && !self.followed.contains(&step.line);
        self.blocks().into_iter().find(|steps| steps.iter().any(is_meant)).unwrap_or_default()
    }

    fn blocks(&self) -> Vec<Vec<Step>> {
        let (mut blocks, mut is_inside) = (Vec::new(), false);
        for (number, line) in (1..).zip(&self.lines) {
            match line.as_str() {
                "```console" => {
                    blocks.push(Vec::new());
                    is_inside = true;
                }
                "```" => is_inside = false,
                line if is_inside => {
                    let steps: &mut Vec<Step> = blocks.last_mut().expect("a block was begun");
                    match line.split_once("$ ").filter(|(machine, _)| machine.starts_with("web-")) {
                        Some((machine, command)) => steps.push(Step {
                            line: number,
                            machine: machine.to_owned(),
                            command: command.split(" #").next().expect("there is a first").trim().to_owned(),
                            says: Vec::new(),
                        }),
                        None => match steps.last_mut() {
                            Some(step) => step.says.push(line.to_owned()),
                            None => panic!("{}:{number}: a block begins with no command", self.name),
                        },
                    }
                }
                _ => {}
            }
        }
        blocks
    }

    fn take(&mut self, hosts: &mut Hosts, step: &Step) {
        let at = format!("{}:{} `{}`", self.name, step.line, step.command);
        let command = self.in_truth(&step.command);
        let host = hosts.named_mut(&step.machine);
        let words: Vec<&str> = command.split_whitespace().collect();
        let exported = self.exported.entry(step.machine.clone()).or_default();
        let text = match words[..] {
            ["export", ..] => {
                let pairs = words[1..].iter().filter_map(|word| word.split_once('='));
                exported.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
                String::new()
            }
            // What Debian has is there: the tests install it.
            ["apt-get", "install", package] => {
                host.shell(&format!("dpkg -s {package}"), exported).mentions("install ok installed");
                String::new()
            }
            // These machines have no systemd; its unit stops rung so, and starts it.
            ["systemctl", "stop", "rung"] => {
                host.stop();
                String::new()
            }
            ["systemctl", "start", "rung"] => {
                host.serve_with(&["--keep"]);
                String::new()
            }
            ["rung", verb @ ("up" | "join"), ..] => {
                let before = host.output().len();
                host.run(&words[1..]);
                eventually(&format!("{at} says what the page says"), || {
                    let output = host.output().split_off(before);
                    match_all(&step.says, &output).map(|_| output).map_err(|why| format!("{verb}: {why}"))
                })
            }
            // Who only looks may look again.
            ["rung", "cluster" | "status"] | ["rung", "node", "list"] | ["rung", "cluster", "approve"] => {
                eventually(&format!("{at} says what the page says"), || {
                    let said = host.shell(&command, exported);
                    let text = format!("{}{}", said.out, said.err);
                    match_all(&step.says, &text).map(|_| text)
                })
            }
            _ => {
                let said = host.shell(&command, exported);
                let is_error = step.says.iter().any(|line| line.starts_with("error: "));
                assert_eq!(said.code != Some(0), is_error, "{at}: {}", said.everything());
                format!("{}{}", said.out, said.err)
            }
        };
        let learned = match_all(&step.says, &text).unwrap_or_else(|why| panic!("{at}: {why}"));
        self.said.extend(learned);
    }

    /// The command with the words that were said where the page has its own.
    fn in_truth(&self, command: &str) -> String {
        self.said.iter().fold(command.to_owned(), |command, (page, truth)| command.replace(page, truth))
    }
}

/// Compares what the page says with what was said; answers with the words behind the page's ellipses.
fn match_all(page: &[String], said: &str) -> Result<Vec<(String, String)>, String> {
    let shown: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let wanted: Vec<&str> = page.iter().map(String::as_str).filter(|line| !line.trim().is_empty()).collect();
    let mut learned = Vec::new();
    let (mut at, mut may_skip) = (0, false);
    for line in &wanted {
        if line.trim() == ELLIPSIS {
            may_skip = true;
            continue;
        }
        let reach = if may_skip { shown.len() } else { (at + 1).min(shown.len()) };
        let found = (at..reach).find_map(|at| match_line(line, shown[at]).map(|words| (at, words)));
        let Some((found, words)) = found else {
            return Err(format!("the page says {line:?}, which was not said in\n{said}"));
        };
        learned.extend(words);
        (at, may_skip) = (found + 1, false);
    }
    if at < shown.len() && !may_skip && !wanted.is_empty() {
        return Err(format!("the page does not say {:?}", shown[at]));
    }
    Ok(learned)
}

/// `None` when they differ.
fn match_line(page: &str, said: &str) -> Option<Vec<(String, String)>> {
    let (page, said): (Vec<&str>, Vec<&str>) =
        (page.split_whitespace().collect(), said.split_whitespace().collect());
    let mut learned = Vec::new();
    let mut rest = &said[..];
    for (index, word) in page.iter().enumerate() {
        if *word == ELLIPSIS {
            // Any words, up to the one that the page goes on with.
            let Some(next) = page.get(index + 1) else { return Some(learned) };
            let at = rest.iter().position(|said| matches(next, said))?;
            rest = &rest[at..];
            continue;
        }
        let (first, others) = rest.split_first()?;
        if !matches(word, first) {
            return None;
        }
        if word.contains(ELLIPSIS) {
            learned.push(((*word).to_owned(), (*first).to_owned()));
        }
        rest = others;
    }
    rest.is_empty().then_some(learned)
}

/// Words with an ellipsis are alike up to the first sign that ends their kind: `sha256:5b1f…`, `worker.6f2c….5b1f…`.
fn matches(page: &str, said: &str) -> bool {
    if !page.contains(ELLIPSIS) {
        return page == said;
    }
    match page.find([':', '.']).filter(|end| page[..*end].chars().all(char::is_alphanumeric)) {
        Some(end) => said.starts_with(&page[..=end]),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(page: &str, said: &str) -> Result<Vec<(String, String)>, String> {
        match_all(&page.lines().map(str::to_owned).collect::<Vec<_>>(), said)
    }

    #[test]
    fn a_page_is_matched_line_by_line_and_its_ellipses_are_remembered() {
        let page = "rung join 10.0.0.1:7864 worker.6f2c….91ab…\n…\ndone  in 3 s";
        let said = "\n    rung join 10.0.0.1:7864 worker.aa.bb\n\nwhatever\nit says\ndone in 3 s\n";
        let learned = compare(page, said).expect("it is what the page says");
        assert_eq!(learned, [("worker.6f2c….91ab…".to_owned(), "worker.aa.bb".to_owned())]);
        assert!(compare(page, &said.replace("worker.", "server.")).is_err());
        assert!(compare(page, &said.replace("3 s", "4 s")).is_err());
        assert!(compare("done in 3 s", said).is_err(), "it says more than the page");
    }

    #[test]
    fn any_words_stand_between_those_of_the_page() {
        assert!(compare("web-2: … are free)", "web-2: 80 MB are free)").is_ok());
        assert!(compare("web-2: … are free)", "web-2: 80 MB are taken)").is_err());
        assert!(compare("", "anything").is_ok(), "a page that says nothing wants nothing");
    }
}
