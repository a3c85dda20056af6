//! What the documentation and the examples show is what is read.

use super::*;

const DOCUMENTATION: &str = include_str!("../../../../../docs/app-file.md");

/// The part of the documentation below a heading that ends with `title`, up to the next heading.
fn documented(title: &str) -> &'static str {
    let heading = format!("## `{title}`\n");
    let start =
        DOCUMENTATION.find(&heading).unwrap_or_else(|| panic!("docs/app-file.md has no heading {heading:?}"));
    let rest = &DOCUMENTATION[start + heading.len()..];
    rest.split("\n## ").next().unwrap()
}

#[test]
fn every_key_and_every_default_is_documented() {
    for section in schema::ALL {
        let text = documented(section.title);
        for key in section.keys {
            assert!(
                text.contains(&format!("| `{key}` |")),
                "`{key}` is missing below {} in docs/app-file.md",
                section.title
            );
        }
        for refused in section.refused.iter().filter(|refused| refused.why == schema::Why::NotYet) {
            let later = documented("Later");
            assert!(
                later.contains(&format!("`{}`", refused.key)),
                "`{}` is missing below Later",
                refused.key
            );
        }
    }
    let row = |title: &str, key: &str| {
        let start = format!("| `{key}` |");
        documented(title).lines().find(|line| line.starts_with(&start)).unwrap().to_owned()
    };
    let durations = [
        ("[build]", "timeout", defaults::BUILD_TIMEOUT),
        ("[deploy]", "release_timeout", defaults::RELEASE_TIMEOUT),
        ("[deploy]", "deadline", defaults::DEADLINE),
        ("[deploy]", "wait_at_most", defaults::WAIT_AT_MOST),
        ("[services.<name>]", "drain", defaults::DRAIN),
        ("[services.<name>]", "stop_grace", defaults::STOP_GRACE),
        ("[services.<name>]", "response_timeout", defaults::RESPONSE_TIMEOUT),
        ("[jobs.<name>]", "start_deadline", defaults::JOB_START_DEADLINE),
        ("[jobs.<name>]", "timeout", defaults::JOB_TIMEOUT),
        ("[jobs.<name>]", "retry_after", defaults::JOB_RETRY_AFTER),
        ("health", "interval", defaults::HEALTH_INTERVAL),
        ("health", "timeout", defaults::HEALTH_TIMEOUT),
        ("health", "grace", defaults::HEALTH_GRACE),
        ("hold", "max_time", defaults::HOLD_TIME),
    ];
    for (title, key, value) in durations {
        let default = format!("| `\"{}\"` |", values::show_duration(value));
        assert!(row(title, key).contains(&default), "{title} {key}: the default {default} is not documented");
    }
    let numbers = [
        ("[services.<name>]", "instances", defaults::INSTANCES),
        ("health", "unhealthy_after", defaults::UNHEALTHY_AFTER),
        ("health", "restart_after", defaults::RESTART_AFTER),
        ("hold", "max_requests", defaults::HOLD_REQUESTS),
        ("abort_if", "requests", u32::try_from(defaults::ABORT_REQUESTS).unwrap()),
    ];
    for (title, key, value) in numbers {
        assert!(
            row(title, key).contains(&format!("| `{value}` |")),
            "{title} {key}: the default {value} is not documented"
        );
    }
}

#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let examples: Vec<&str> =
        DOCUMENTATION.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 2, "docs/app-file.md has no examples");
    for example in examples {
        accepted(example);
    }
}

/// Its examples are parts of files: what they leave out is what no route is about.
#[test]
fn the_page_about_the_ingress_shows_every_key_of_a_route() {
    let page = include_str!("../../../../../docs/ingress.md");
    let examples: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    for example in &examples {
        let app = if example.contains("app = ") { "" } else { "app = \"shop\"\n" };
        let services =
            ["web", "api", "next"].map(|name| format!("[services.{name}]\ncommand = \"bin/{name}\"\n"));
        accepted(&format!("{app}{example}{}", services.concat()));
    }
    let shown = |key: &str| {
        let mut words = examples.iter().flat_map(|example| example.split([' ', '\n', '{', '[', ']', '.']));
        words.any(|word| word == key)
    };
    for section in [&schema::ROUTE, &schema::AUTH, &schema::CORS, &schema::LIMIT, &schema::OVERLOAD] {
        for key in section.keys {
            assert!(shown(key), "no example of docs/ingress.md shows `{key}` of {}", section.title);
        }
    }
}

#[test]
fn the_examples_are_accepted() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let files = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path().join("rung.toml"));
    for file in files.filter(|file| file.exists()) {
        if let Err(errors) = parse(&file.display().to_string(), std::fs::read(&file).unwrap()) {
            panic!("{errors}");
        }
    }
}
