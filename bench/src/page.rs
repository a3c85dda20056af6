//! `bench/RESULTS.md`: a section for each bench, each written by its own run.

use std::path::Path;

use anyhow::Context;

/// Writes a section of a page, leaving every other section as it is.
pub fn replace_section(path: &Path, title: &str, text: &str) -> anyhow::Result<()> {
    let page = match std::fs::read_to_string(path) {
        Ok(page) => page,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    std::fs::write(path, with_section(&page, title, text))
        .with_context(|| format!("writing {}", path.display()))
}

fn with_section(page: &str, title: &str, text: &str) -> String {
    let section = format!("## {title}\n\n{}\n", text.trim_end());
    let page = if page.trim().is_empty() { "# Results\n" } else { page };
    let heading = format!("## {title}\n");
    let found = if page.starts_with(&heading) {
        Some(0)
    } else {
        page.find(&format!("\n{heading}")).map(|at| at + 1)
    };
    let Some(start) = found else { return format!("{}\n\n{section}", page.trim_end()) };
    let end = page[start + 1..].find("\n## ").map(|at| start + 1 + at);
    let after = end.map_or(String::new(), |end| page[end..].to_owned());
    format!("{}{section}{after}", &page[..start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let page = "# Results\n\n## First rung\n\na\n\n## Ingress\n\nold\n\n## Last\n\nz\n";
        let now = with_section(page, "Ingress", "new\n");
        assert_eq!(now, "# Results\n\n## First rung\n\na\n\n## Ingress\n\nnew\n\n## Last\n\nz\n");
        assert_eq!(with_section(&now, "Ingress", "new"), now, "writing it again changes something");
        assert_eq!(with_section("", "Ingress", "new"), "# Results\n\n## Ingress\n\nnew\n");
    }
}
