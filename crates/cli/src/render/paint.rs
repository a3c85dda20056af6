//! Colours, for terminals that want them.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Color,
}

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Color if text.is_empty() => String::new(),
            Self::Color => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// The same name gets the same colour.
    pub fn name(self, name: &str) -> String {
        const COLORS: [&str; 5] = ["36", "35", "34", "32", "33"];
        let sum = name.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.wrap(COLORS[sum % COLORS.len()], name)
    }
}

/// How good what a text says is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Good,
    Neutral,
    Warning,
    Bad,
}

impl Paint {
    pub fn mood(self, mood: Mood, text: &str) -> String {
        match mood {
            Mood::Good => self.good(text),
            Mood::Neutral => text.to_owned(),
            Mood::Warning => self.warning(text),
            Mood::Bad => self.bad(text),
        }
    }
}
