//! Who is who between machines: the cluster's authority, the nodes' identities, and TLS that knows both.
//!
//! How it works: an [`Authority`] is a key of the cluster's own that signs certificates of 24 hours. A certificate says
//! a node's name and role as DNS names below `rung.internal` ([`Peer`]), so a connection is checked by *who* is at its
//! other end and not by where that is: addresses may change, be translated or float. A node makes its own key and has
//! it signed ([`Identity`]); a renewal is taken up by the next handshake, without a restart. Before a machine has an
//! identity it knows the authority by the hash of its certificate alone ([`Fingerprint`]). [`Listener`] accepts TLS,
//! where whoever shows a certificate must be one of the [`Members`]; a member that is taken away is cut off at once. Whether
//! a connection carries questions side by side is agreed there, too ([`Protocol`]).
//!
//! A [`TrustDirectory`] keeps a machine's key and certificates for all its roles. Whom the machine trusts beyond the
//! cluster, [`machine_authorities`] says.
//!
//! What it deliberately does not do: it knows no HTTP and not where the authority is kept, and has no revocation lists:
//! certificates are short, and membership is looked up.

mod authority;
mod config;
mod directory;
mod explain;
mod fingerprint;
mod guard;
mod identity;
mod leaf;
mod listener;
mod machine;
mod members;
mod peer;

pub use authority::{Authority, AuthorityError, AuthorityFile, CERTIFICATE_LIFE, Certificate, PublicKey};
pub use config::{Belief, Protocol, client_config, offers_side_by_side, one_by_one, server_config};
pub use directory::{DirectoryError, TrustDirectory};
pub use explain::{Explained, explain};
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use guard::Guarded;
pub use identity::{Credentials, CredentialsError, Identity, LOOK_AT_THE_CLOCK, NodeKey, renewal_is_due};
pub use leaf::{Leaf, NoCertificate};
pub use listener::{Accepted, Caller, Clients, Listener};
pub use machine::{NoAuthorities, machine_authorities};
pub use members::{Member, MemberList, Members};
pub use peer::{Peer, PeerError, node_name, role_name, server_name};
