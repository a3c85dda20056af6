//! The release before, while it and the next one share the visitors.
//!
//! A step that gives only a part of the visitors away may last for days, and what blue-green starts may take its time.
//! Meanwhile whoever serves the others is kept as in quieter times: when the service is scaled, up or down, and when a node
//! is lost or shall be emptied. Where everybody is about to change over the old instances only wait to leave; those are
//! not replaced any more.

use rung_model::appfile::Service;
use rung_model::{AppName, ServiceName};

use crate::course::{self, Target};
use crate::draft::Draft;
use crate::fleet::{Member, Routing};
use crate::reconcile::{Aim, Kinds, declared, desired_count, live_aim, shall_move, start};

/// The live release, while it serves for its own sake.
fn serving(draft: &Draft<'_>, app: &AppName) -> Option<Aim> {
    let serves = matches!(course::target(draft, app), Some(Target::Ready | Target::Part(_)));
    if serves && draft.app(app).destroying.is_none() { live_aim(draft, app) } else { None }
}

fn kept_up(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    kinds: &Kinds,
) -> Option<(Aim, Service, u32)> {
    // One of which there are never two changes hands with the last step: it has no standby.
    let aim = serving(draft, app).filter(|_| !kinds.exclusive)?;
    let declared = declared(draft, app, Some(aim), service)?;
    let desired = desired_count(draft, app, service, &declared);
    Some((aim, declared, desired))
}

/// Services that the next release may not have any more.
pub(crate) fn services(draft: &Draft<'_>, app: &AppName) -> Vec<ServiceName> {
    let release = serving(draft, app).and_then(|aim| draft.release(app, aim.release));
    release.map(|release| release.file.services.keys().cloned().collect()).unwrap_or_default()
}

/// What is more than the service shall have leaves, when it was scaled down meanwhile. What runs where nothing shall run any
/// more leaves once enough others serve; at once when its node is lost.
pub(crate) fn make_way(draft: &Draft<'_>, app: &AppName, service: &ServiceName, kinds: &mut Kinds) {
    let Some((_, declared, desired)) = kept_up(draft, app, service, kinds) else { return };
    let stays = |member: &Member| !shall_move(draft, Some(&declared), member);
    let serves =
        |member: &&Member| member.is_healthy() && (!declared.port || member.routing == Routing::Routed);
    let staying = kinds.standby.iter().filter(|member| stays(member)).filter(serves).count();
    let are_enough = staying >= desired as usize;
    let leaves = |member: &mut Member| !stays(member) && (are_enough || draft.known(member.at).is_forced_out);
    kinds.leaving.extend(kinds.standby.extract_if(.., leaves));
    release_surplus(desired as usize, stays, kinds);
}

/// As elsewhere the healthy stay, and of these the oldest. Those that shall move are not counted: they have their own way.
fn release_surplus(desired: usize, stays: impl Fn(&Member) -> bool, kinds: &mut Kinds) {
    let (mut staying, moving): (Vec<Member>, Vec<Member>) = kinds.standby.drain(..).partition(stays);
    staying.sort_by_key(|member| !member.is_healthy());
    kinds.leaving.extend(staying.split_off(staying.len().min(desired)));
    kinds.standby.extend(staying);
    kinds.standby.extend(moving);
}

/// Starts what the old release has too few of.
pub(crate) fn start_missing(draft: &mut Draft<'_>, app: &AppName, service: &ServiceName, kinds: &Kinds) {
    let Some((aim, declared, desired)) = kept_up(draft, app, service, kinds) else { return };
    let staying = kinds.standby.iter().filter(|member| !shall_move(draft, Some(&declared), member)).count();
    let missing = desired.saturating_sub(staying as u32);
    if missing > 0 {
        start(draft, app, service, aim, &declared, kinds, missing);
    }
}
