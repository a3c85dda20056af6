//! The right that an endpoint needs. Each states its own where it is routed; one that states none does not compile.

use rung_model::Role;

/// Who may call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Whoever can connect, without a token.
    Anybody,
    /// Whoever has a valid token. The handler shows and changes only what that one may: it asks its
    /// [`Caller`](crate::access::Caller).
    Anyone,
    /// Whoever has this role over the app in the path; to others the app does not exist.
    OfApp(Role),
    /// An admin.
    Admin,
    /// Nodes and proxies.
    Node,
}

/// Shows the app in the path.
pub(crate) const VIEW: Right = Right::OfApp(Role::Viewer);
/// Changes the app in the path.
pub(crate) const DEPLOY: Right = Right::OfApp(Role::Deployer);

impl Right {
    /// For the API's description.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Anybody => "Needs no token.",
            Self::Anyone => "Needs any token; answers what that token may see.",
            Self::OfApp(Role::Viewer) => "Needs a token that may view the app.",
            Self::OfApp(Role::Deployer) => "Needs a token that may deploy the app.",
            Self::OfApp(Role::Admin) | Self::Admin => "Needs a token of role admin.",
            Self::Node => "For nodes and proxies only.",
        }
    }
}
