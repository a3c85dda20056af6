//! A deployment's release: how it is made, its release command, and what its end means for settings and for those who
//! are to be told.

use std::time::Duration;

use rung_model::app::Migrated;
use rung_model::{
    App, AppName, DeploymentKind, Digest, Goal, ImageName, ImageSource, Notification, NotificationState,
    Outcome, Phase, Release, ReleaseCommand, ReleaseNumber, RunKind,
};

use super::{Followed, RUN_MARGIN, deployed_release, end, enter, fail, follow_run, note, set_budget};
use crate::draft::Draft;
use crate::routes::hosts;

/// The steps of a deployment that are runs, as their ids name them.
const BEFORE: &str = "before";
const RELEASE: &str = "release";

pub(super) fn make_release(draft: &mut Draft<'_>, app: &AppName, artifact: Digest) {
    if let Some((image, current)) = is_what_serves(draft, app, &artifact) {
        let deployment = draft.change_deployment(app);
        deployment.release = Some(current);
        let message = format!("{image} is the image of {current}, and nothing else has changed");
        end(draft, app, Phase::Succeeded, message);
        return;
    }
    let at = draft.input.clock.wall;
    let number = draft.app(app).last_release.next();
    let deployment = draft.change_deployment(app);
    let pending = deployment.draft.take().expect("a release is made from its draft once");
    deployment.release = Some(number);
    let mut provenance = pending.provenance;
    if let Some(build) = deployment.run.take() {
        provenance.build = Some(build);
    }
    let by = deployment.by.clone();
    draft.change_app(app).last_release = number;
    let release = Release {
        app: app.clone(),
        number,
        artifact,
        source: pending.source,
        file: pending.file,
        config: pending.config,
        secrets: pending.secrets,
        at,
        by,
        reason: pending.reason,
        note: pending.note,
        provenance,
    };
    let moved = moved_tag(draft, &release);
    draft.add_release(release.clone());
    if let Some(message) = moved {
        note(draft, app, message);
    }
    go_on(draft, app, &release, format!("{number} is made"));
}

/// Of a release that was made by an earlier deployment.
pub(super) fn begin_made_release(draft: &mut Draft<'_>, app: &AppName) {
    let Some(release) = deployed_release(draft, app) else { return };
    let beginning = format!("{} was made before", release.number);
    go_on(draft, app, &release, beginning);
}

/// A host that the release asks for and that another app has, or is about to have. It was free when the deploy was asked for,
/// and builds take their time: here, one deployment comes after the other.
fn taken_host(draft: &Draft<'_>, app: &AppName, release: &Release) -> Option<String> {
    let own = hosts(app, &release.file);
    let others = draft.input.world.apps.keys().filter(|other| *other != app);
    let mut taken = others.flat_map(|other| {
        let comes = draft.deployment(other).filter(|deployment| !deployment.has_ended());
        let comes = comes.and_then(|deployment| draft.release(other, deployment.release?));
        let routed = draft.route_document(other).map(|document| document.hosts.clone());
        comes.map(|release| hosts(other, &release.file)).into_iter().chain(routed).flatten()
    });
    taken.find(|host| own.contains(host))
}

/// From a release to its release command, to rolling it out, or to the end.
fn go_on(draft: &mut Draft<'_>, app: &AppName, release: &Release, beginning: String) {
    if let Some(host) = taken_host(draft, app, release) {
        let reason =
            format!("{beginning}; host {host} belongs to another app by now, which was deployed meanwhile");
        fail(draft, app, reason, Vec::new());
        return;
    }
    let deployment = draft.deployment(app).expect("the caller found one");
    let (kind, asked) = (deployment.kind, deployment.asked);
    if asked.goal == Goal::Release {
        let message = format!("{beginning}; `rung deploy {} --app {app}` rolls it out", release.number);
        end(draft, app, Phase::Succeeded, message);
        return;
    }
    let policy = &release.file.deploy;
    let changes_data = matches!(kind, DeploymentKind::Deploy | DeploymentKind::Promote);
    let command = policy.release.as_ref().filter(|_| changes_data);
    let (budget, phase, message) = match command {
        Some(command) if asked.release_command == ReleaseCommand::Skip => {
            (policy.deadline, Phase::Rolling, format!("{beginning}; `{command}` is left out, as asked"))
        }
        Some(command) if draft.app(app).has_migrated(release) => {
            (policy.deadline, Phase::Rolling, format!("{beginning}; `{command}` ran for it already"))
        }
        Some(command) => {
            let first = policy.before_release.as_ref().unwrap_or(command);
            (policy.release_timeout + RUN_MARGIN, Phase::Releasing, format!("{beginning}; running `{first}`"))
        }
        None => (policy.deadline, Phase::Rolling, beginning),
    };
    enter(draft, app, phase, budget, message);
}

/// A tag that has not moved, in a deploy that would change nothing else, either: what it means is known only once it was
/// looked up. The deployment keeps its draft, which says for which commit it was.
fn is_what_serves(draft: &Draft<'_>, app: &AppName, artifact: &Digest) -> Option<(ImageName, ReleaseNumber)> {
    let deployment = draft.deployment(app).filter(|deployment| deployment.kind == DeploymentKind::Deploy)?;
    let pending = deployment.draft.as_ref()?;
    let Some(ImageSource::Name { image }) = &pending.file.build.image else { return None };
    let current = draft.release(app, draft.app(app).current?)?;
    let same = current.artifact == *artifact
        && current.file == pending.file
        && current.config == pending.config
        && current.secrets == pending.secrets;
    let is_done =
        deployment.asked.release_command == ReleaseCommand::Skip || draft.app(app).has_migrated(current);
    (same && is_done).then(|| (image.clone(), current.number))
}

/// The same name of an image is another image than in the release that serves.
fn moved_tag(draft: &Draft<'_>, release: &Release) -> Option<String> {
    let Some(ImageSource::Name { image }) = release.file.build.image.as_ref() else { return None };
    let from = draft.deployment(&release.app)?.from?;
    let before = draft.release(&release.app, from)?;
    let is_same_name = before.file.build.image == release.file.build.image;
    (is_same_name && before.artifact != release.artifact)
        .then(|| format!("{image} has moved: it is another image than in {from}"))
}

/// The restore point, when one is wanted, then the release command.
pub(super) fn advance_release_command(draft: &mut Draft<'_>, app: &AppName, remaining: Duration) {
    let Some(release) = deployed_release(draft, app) else { return };
    let policy = &release.file.deploy;
    let Some(command) = policy.release.clone() else { return };
    let kind = |command: &str| RunKind::Release { release: release.number, command: command.to_owned() };
    let mut remaining = remaining;
    if let Some(before) = policy.before_release.as_ref().filter(|_| !is_at_release_command(draft, app)) {
        match follow_run(draft, app, BEFORE, kind(before), policy.release_timeout, remaining) {
            Followed::Going => return,
            Followed::Succeeded(_) => {
                remaining = policy.release_timeout + RUN_MARGIN;
                set_budget(draft, app, remaining);
                note(draft, app, format!("`{before}` succeeded; running `{command}`"));
            }
            Followed::Failed(reason, log_tail) => {
                fail(
                    draft,
                    app,
                    format!("`{before}`, before the release command, failed: {reason}"),
                    log_tail,
                );
                return;
            }
        }
    }
    match follow_run(draft, app, RELEASE, kind(&command), policy.release_timeout, remaining) {
        Followed::Going => {}
        Followed::Succeeded(_) => {
            remember_migration(
                draft.change_app(app),
                Migrated { artifact: release.artifact.clone(), command },
            );
            draft.change_deployment(app).run = None;
            enter(draft, app, Phase::Rolling, policy.deadline, "the release command succeeded");
        }
        Followed::Failed(reason, log_tail) => {
            fail(draft, app, format!("release command failed: {reason}"), log_tail);
        }
    }
}

fn is_at_release_command(draft: &Draft<'_>, app: &AppName) -> bool {
    let run = draft.deployment(app).and_then(|deployment| deployment.run.as_ref());
    run.is_some_and(|run| run.as_str().ends_with(&format!("-{RELEASE}")))
}

fn remember_migration(app: &mut App, migrated: Migrated) {
    app.migrated.push(migrated);
    let excess = app.migrated.len().saturating_sub(App::MIGRATED_MAX);
    app.migrated.drain(..excess);
}

/// Config and secrets are what the release that serves says, once a deployment that moves them has ended: those of a
/// rollback that succeeded, or those from before a change that did not.
pub(super) fn settle_settings(draft: &mut Draft<'_>, app: &AppName) {
    let deployment = draft.deployment(app).expect("the caller found one");
    let moves_settings = match deployment.kind {
        DeploymentKind::Rollback | DeploymentKind::Config | DeploymentKind::Secret => true,
        DeploymentKind::Deploy | DeploymentKind::Restart | DeploymentKind::Promote => false,
    };
    let succeeded = deployment.outcome() == Some(Outcome::Succeeded);
    let current = draft.app(app).current.and_then(|number| draft.release(app, number)).cloned();
    let Some(current) = current.filter(|_| moves_settings) else { return };
    let record = draft.app(app);
    if record.config == current.config && record.secrets == current.secrets {
        return;
    }
    let record = draft.change_app(app);
    record.config = current.config;
    record.secrets = current.secrets;
    let again = if succeeded { "are those" } else { "are again those" };
    note(draft, app, format!("config and secrets {again} of {}", current.number));
}

/// Who is told of the end, as the release says that was to be brought.
pub(super) fn address_notification(draft: &mut Draft<'_>, app: &AppName) {
    let deployment = draft.deployment(app).expect("the caller found one");
    let made = deployment.release.and_then(|number| draft.release(app, number));
    let (notify, secrets) = match (made, &deployment.draft) {
        (Some(release), _) => (&release.file.notify, &release.secrets),
        (None, Some(pending)) => (&pending.file.notify, &pending.secrets),
        (None, None) => return,
    };
    let Some(notify) = notify else { return };
    let secret = notify.secret.as_ref().map(|name| (name, secrets.get(name)));
    let (secret, state) = match secret {
        None => (None, NotificationState::Pending),
        Some((name, Some(version))) => (Some((name.clone(), *version)), NotificationState::Pending),
        Some((name, None)) => {
            let reason = format!("secret {name} is not set, and nothing is sent unsigned");
            (None, NotificationState::GivenUp { reason })
        }
    };
    let notification = Notification { webhook: notify.webhook.clone(), secret, state };
    draft.change_deployment(app).notification = Some(notification);
}
