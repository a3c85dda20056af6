//! A label as it is said on the command line: `disk=ssd`, or `disk=` to take it away.

use std::str::FromStr;

use rung_model::label::InvalidLabel;
use rung_model::{Label, LabelName};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelWord {
    Set(Label),
    Remove(LabelName),
}

impl FromStr for LabelWord {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        match text.strip_suffix('=') {
            Some(name) => Ok(Self::Remove(LabelName::new(name)?)),
            None => Ok(Self::Set(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_a_value_is_taken_away() {
        assert_eq!("disk=ssd".parse(), Ok(LabelWord::Set("disk=ssd".parse().unwrap())));
        assert_eq!("disk=".parse(), Ok(LabelWord::Remove(LabelName::new("disk").unwrap())));
        assert!("disk".parse::<LabelWord>().is_err() && "=".parse::<LabelWord>().is_err());
    }
}
