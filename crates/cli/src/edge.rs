//! The edge: where an error becomes words and an exit code, once.

use std::fmt::Write as _;
use std::process::ExitCode;

use rung_api::{ClientError, Code, ErrorBody};
use rung_model::appfile::AppFileErrors;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    /// The deployment did not come up and was reverted.
    RolledBack,
    /// Somebody else is deploying.
    Deploying,
    /// Ctrl-C: what was followed goes on, and how it ends is not known.
    Interrupted,
    /// What the command of `rung run` exited with.
    Command(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::RolledBack => 3,
            Self::Deploying => 4,
            // As shells have it: 128 and the signal's number.
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that knows the way out of it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    pub message: String,
    pub hint: String,
    pub exit: Exit,
}

impl Hinted {
    pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), exit: Exit::Failed }
    }

    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), exit: Exit::Usage }
    }
}

/// Whoever read our output has gone, like `head`: not an error.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
pub struct OutputClosed;

/// What is printed of an error, and what the command exits with. Nothing is printed when the text is empty.
pub fn explain(error: &anyhow::Error) -> (String, Exit) {
    if error.downcast_ref::<OutputClosed>().is_some() {
        return (String::new(), Exit::Done);
    }
    if let Some(errors) = error.downcast_ref::<AppFileErrors>() {
        return (explain_app_file(errors), Exit::Failed);
    }
    let mut text = format!("error: {}", error.to_string().trim_end());
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Errors that say no more than their source would be repeated.
        if !text.ends_with(cause.trim_end()) {
            write!(text, ": {}", cause.trim_end()).expect("writing to a string succeeds");
        }
    }
    if let Some(hint) = hint_of(error) {
        write!(text, "\nhint: {hint}").expect("writing to a string succeeds");
    }
    (text, exit_of(error))
}

fn explain_app_file(errors: &AppFileErrors) -> String {
    let shown = errors.errors().iter().map(|error| format!("error: {error}\n\n")).collect::<String>();
    let whole = errors.to_string();
    let summary = whole.lines().next_back().unwrap_or_default();
    format!("{shown}{summary}; nothing was deployed")
}

fn body_of<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e ErrorBody> {
    match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Api(body)) => Some(body),
        _ => cause.downcast_ref::<ErrorBody>(),
    }
}

fn hint_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return Some(hinted.hint.clone());
        }
        if let Some(body) = body_of(cause) {
            return body.hint.clone().or_else(|| hint_of_code(body.code));
        }
        match cause.downcast_ref::<ClientError>()? {
            ClientError::Connect { .. } => Some("is it running? start it with `rung up`".to_owned()),
            ClientError::NotUnderstood { .. } => {
                Some("use the same version of rung as the server".to_owned())
            }
            ClientError::Untrusted { why: rung_trust::Explained::Clock, .. } => Some(
                "compare the clocks of this machine and of that one, and set the one that is wrong"
                    .to_owned(),
            ),
            ClientError::Untrusted { .. } => Some(
                "if another machine took that address, or the cluster was made anew, use the new --ca"
                    .to_owned(),
            ),
            ClientError::NoTrust { .. } => Some(
                "give the fingerprint of its authority with --ca or RUNG_CA; `rung up` prints it there"
                    .to_owned(),
            ),
            ClientError::BrokenOff { .. } => Some("ask again; what was shown may not be all".to_owned()),
            ClientError::Broken { .. } | ClientError::Api(_) => None,
        }
    })
}

fn hint_of_code(code: Code) -> Option<String> {
    let hint = match code {
        Code::Unauthorized => {
            "keep a token with `rung login`, give one with RUNG_TOKEN, or the data directory with --data"
        }
        Code::Deploying => "wait for it with `rung status`, or stop it with `rung cancel`",
        Code::Unknown => "look with `rung status` before doing it again",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn exit_of(error: &anyhow::Error) -> Exit {
    let exit = error.chain().find_map(|cause| {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return Some(hinted.exit);
        }
        (body_of(cause)?.code == Code::Deploying).then_some(Exit::Deploying)
    });
    exit.unwrap_or(Exit::Failed)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_error_is_told_once_with_its_causes_and_the_way_out() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ClientError::Connect { address: "http://127.0.0.1:7864".into(), source: refused };
        let (text, exit) = explain(&anyhow::Error::from(error).context("showing the status of shop"));
        expect![[r#"
            error: showing the status of shop: connecting to the rung server at http://127.0.0.1:7864: connection refused
            hint: is it running? start it with `rung up`"#]]
        .assert_eq(&text);
        assert_eq!(exit, Exit::Failed);
    }

    #[test]
    fn a_deployment_of_somebody_else_exits_with_4() {
        let body = ErrorBody::new(Code::Deploying, "d7 of shop by ada@laptop is going on");
        let (text, exit) = explain(&anyhow::Error::from(ClientError::Api(body)).context("deploying shop"));
        expect![[r#"
            error: deploying shop: d7 of shop by ada@laptop is going on
            hint: wait for it with `rung status`, or stop it with `rung cancel`"#]]
        .assert_eq(&text);
        assert_eq!(exit.code(), 4);
    }

    #[test]
    fn wrong_usage_exits_with_2_and_a_closed_output_is_no_error() {
        let error =
            Err::<(), _>(Hinted::usage("which app?", "name it with --app")).context("opening").unwrap_err();
        assert_eq!(explain(&error).1, Exit::Usage);
        assert_eq!(explain(&OutputClosed.into()), (String::new(), Exit::Done));
    }

    #[test]
    fn every_error_of_an_app_file_is_shown_as_one() {
        let errors = rung_model::appfile::parse("rung.toml", "app = 1\nservices = 2\n").unwrap_err();
        expect![[r#"
            error: `app` must be a text, not a number
             --> rung.toml:1:7
              |
            1 | app = 1
              |       ^
              = write app = "shop"

            error: the app has no services
             --> rung.toml:2:1
              |
            2 | services = 2
              | ^^^^^^^^
              = write [services.web] with command = "bin/server" below it

            error: `services` must be a table, not a number
             --> rung.toml:2:12
              |
            2 | services = 2
              |            ^
              = write [services.web] with command = "bin/server" below it

            rung.toml has 3 errors; nothing was deployed"#]]
        .assert_eq(&explain(&errors.into()).0);
    }
}
