//! Reads the closing line of cargo-nextest.

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    /// Failed, timed out, or could not be executed.
    pub failed: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// The last summary among the lines; `None` when the run did not come to one.
pub fn read(lines: &[String]) -> Option<Count> {
    lines.iter().rev().find_map(|line| read_line(line))
}

/// `     Summary [   0.003s] 10 tests run: 9 passed (1 slow), 1 failed, 1 timed out, 0 skipped`
fn read_line(line: &str) -> Option<Count> {
    let line = without_colours(line);
    let (before, after) = line.split_once(" run: ")?;
    if !before.trim_start().starts_with("Summary") {
        return None;
    }
    let mut count = Count::default();
    for part in without_parentheses(after).split(',') {
        let (number, word) = part.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match word.trim() {
            "passed" => count.passed += number,
            "skipped" => {}
            _ => count.failed += number,
        }
    }
    Some(count)
}

fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        out.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    out + rest
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0usize;
    text.chars()
        .filter(|&c| {
            match c {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nextest_says_at_its_end_is_understood() {
        let plain = "     Summary [   0.003s] 10 tests run: 7 passed (1 slow, 1 flaky), 2 failed, 1 timed out, 3 skipped";
        assert_eq!(read_line(plain), Some(Count { passed: 7, failed: 3 }));
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.003s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(read_line(coloured), Some(Count { passed: 1, failed: 0 }));
        assert_eq!(read_line("        PASS [   0.003s] a test that was run: well"), None);
    }

    #[test]
    fn the_last_summary_counts() {
        let lines = [
            "Summary [1s] 1 test run: 1 passed, 0 skipped",
            "Summary [1s] 2 tests run: 2 passed, 0 skipped",
            "error: x",
        ];
        assert_eq!(read(&lines.map(str::to_owned)), Some(Count { passed: 2, failed: 0 }));
    }
}
