//! Words to whoever looks: a reader that has gone, or a disk that is full, is no reason to stop what is being done.

use std::fmt::Arguments;
use std::io::Write as _;

/// Says a line on standard output.
#[macro_export]
macro_rules! say {
    ($($word:tt)*) => { $crate::tell::say(::std::format_args!($($word)*)) };
}

/// Says a line on standard error.
#[macro_export]
macro_rules! note {
    ($($word:tt)*) => { $crate::tell::note(::std::format_args!($($word)*)) };
}

/// See [`say!`](crate::say).
pub fn say(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// See [`note!`](crate::note).
pub fn note(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
