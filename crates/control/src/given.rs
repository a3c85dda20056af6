//! What a process can be given: the variables of its environment and the line of its command. What the kernel would not
//! take is refused where it is said, with the way out; without that it would be missing, or the run would not begin.

use std::collections::BTreeMap;

use rung_api::{Code, ErrorBody};
use rung_model::SecretName;

/// Linux gives one string, `NAME=value` or an argument with its end, 128 KiB.
pub(crate) const STRING_MAX_BYTES: usize = 128 * 1024;

/// Config, secrets and what a run is given besides are variables alike, and named alike.
pub(crate) fn check_name(name: &str) -> Result<(), ErrorBody> {
    SecretName::new(name).map(drop).map_err(|error| {
        let message = format!("{name:?} is not the name of a variable: {}", error.why);
        ErrorBody::new(Code::InvalidRequest, message)
    })
}

/// `what` names the variable in its message.
pub(crate) fn check_no_zero_byte(what: &str, value: &str) -> Result<(), ErrorBody> {
    if value.contains('\0') {
        let message = format!("{what} holds a zero byte, which no process can be given");
        return Err(ErrorBody::new(Code::InvalidRequest, message)
            .hint("give it as base64, which the application decodes"));
    }
    Ok(())
}

/// The command of a run, and variables of its own.
pub(crate) fn check_run(command: &str, env: &BTreeMap<String, String>) -> Result<(), ErrorBody> {
    check_no_zero_byte("the command", command)?;
    for (name, value) in env {
        check_name(name)?;
        check_no_zero_byte(name, value)?;
    }
    let variables: usize = env.iter().map(|(name, value)| name.len() + value.len() + "=\0".len()).sum();
    let bytes = command.len() + "\0".len() + variables;
    if bytes > STRING_MAX_BYTES {
        let message = format!(
            "the command comes to {bytes} bytes with its arguments and variables; {STRING_MAX_BYTES} at most"
        );
        return Err(ErrorBody::new(Code::TooLarge, message).hint(
            "put what is large into a file, in the app's tree or a volume, and name it in an argument",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_process_can_be_given_is_refused_by_name() {
        let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        check_run("bin/import 'ä\n'", &env("SOURCE", "")).unwrap();
        for (command, env, expected) in [
            ("a\0b", BTreeMap::new(), "the command holds a zero byte"),
            ("a", env("A", "x\0"), "A holds a zero byte"),
            ("a", env("", "x"), "\"\" is not the name of a variable: it is empty"),
            ("a", env("A=B", "x"), "\"A=B\" is not the name"),
            ("a", env("1A", "x"), "it starts with a digit"),
        ] {
            let refused = check_run(command, &env).unwrap_err();
            assert!(refused.message.contains(expected), "{refused:?}");
        }
        let most = STRING_MAX_BYTES - "a\0".len() - "A=\0".len();
        check_run("a", &env("A", &"x".repeat(most))).unwrap();
        let refused = check_run("a", &env("A", &"x".repeat(most + 1))).unwrap_err();
        assert!(refused.message.contains("131073 bytes") && refused.hint.is_some(), "{refused:?}");
    }
}
