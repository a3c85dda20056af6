//! What a command said, and how it ended.

use std::time::Duration;

use serde::de::DeserializeOwned;

/// One command of the CLI, ended.
#[derive(Debug)]
pub struct Said {
    pub words: String,
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Said {
    /// # Panics
    /// When it did not end with this exit code.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "`{}` ended with another code than {code}; {}",
            self.words,
            self.everything()
        );
        self
    }

    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.ends_with(0)
    }

    /// # Panics
    /// When none of its output has this text, whatever the case.
    #[track_caller]
    pub fn mentions(self, text: &str) -> Self {
        let all = format!("{}\n{}", self.out, self.err).to_lowercase();
        assert!(
            all.contains(&text.to_lowercase()),
            "`{}` did not mention {text:?}; {}",
            self.words,
            self.everything()
        );
        self
    }

    /// Its standard output, which a `--json` asked for.
    ///
    /// # Panics
    /// When it is not such JSON.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.out).unwrap_or_else(|error| {
            panic!("`{}` did not say the expected JSON ({error}); {}", self.words, self.everything())
        })
    }

    pub fn everything(&self) -> String {
        format!("it took {:?} and said\n--- out\n{}\n--- err\n{}\n---", self.took, self.out, self.err)
    }
}
