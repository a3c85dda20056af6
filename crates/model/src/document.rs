//! What is kept in the store and sent whole, to and from JSON.
//!
//! Reading and writing is generated code, and much of it. It is generated here once; a room that called `serde_json` for a
//! document of the model would compile all of it again.

#[doc(hidden)]
pub use serde_json;

use crate::{
    AddressBlock, App, Assignment, Deployment, JobState, Member, Node, NodesCounted, Observed, Release,
    RouteDocument, Run, Token,
};

/// A value with a JSON form of its own.
pub trait Document: Sized {
    /// # Errors
    /// It is not JSON, or says what this version does not understand.
    fn from_json(text: &[u8]) -> Result<Self, serde_json::Error>;
    fn to_json(&self) -> Vec<u8>;
}

/// Makes documents of types that have their JSON from serde.
#[macro_export]
macro_rules! documents {
    ($($document:ty),+ $(,)?) => {$(
        impl $crate::Document for $document {
            fn from_json(text: &[u8]) -> Result<Self, $crate::document::serde_json::Error> {
                $crate::document::serde_json::from_slice(text)
            }

            fn to_json(&self) -> Vec<u8> {
                $crate::document::serde_json::to_vec(self).expect("documents serialize")
            }
        }
    )+};
}

documents!(
    AddressBlock,
    App,
    Assignment,
    Deployment,
    JobState,
    Member,
    Node,
    NodesCounted,
    Observed,
    Release,
    RouteDocument,
    Run,
    Token,
);
