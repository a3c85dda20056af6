//! Config and secrets. Each change makes a release of its own, once something is deployed.

use std::collections::BTreeMap;

use axum::extract::State;
use jiff::Timestamp;
use rung_api::wire::{
    ConfigRequest, Existing, GenerateRequest, KeyRotated, SecretListing, SecretRequest, Started,
};
use rung_api::{Code, ErrorBody};
use rung_model::{App, AppName, DeploymentKind, Draft, SecretName, appfile, keys};
use rung_store::{Guard, Op};

use super::Answer;
use super::apps::no_such_app;
use super::deploy::Move;
use super::extract::{Body, Json, Named, Private};
use crate::access::Caller;
use crate::given;
use crate::hosts::Claiming;
use crate::keyring::Origin;
use crate::secrets;
use crate::shared::{ATTEMPTS, Committed, Control, contended, store_error};

/// A generated value is no file.
const GENERATED_MAX: usize = 4096;
/// Fewer characters can be guessed.
const GENERATED_MIN: usize = 16;
/// Config lives in the app's record and in every release.
const CONFIG_MAX_BYTES: usize = 64 * 1024;

pub async fn config(State(control): State<Control>, named: Named) -> Answer<BTreeMap<String, String>> {
    let app: AppName = named.get("app")?;
    let found = control.read(|world| Some(world.apps.get(&app)?.value.config.clone()));
    Ok(Json(found.ok_or_else(|| no_such_app(&app))?))
}

pub async fn set_config(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<ConfigRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    let names: Vec<&str> = request.changes.keys().map(String::as_str).collect();
    names.iter().try_for_each(|name| check_name(name))?;
    let mut set = request.changes.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    set.try_for_each(|(name, value)| given::check_no_zero_byte(name, value))?;
    caller.note(names.join(", "));
    let _turn = control.turn_of(&app).await?;
    for _ in 0..ATTEMPTS {
        let (mut record, revision) = control.record_or_new(&app)?;
        if revision == 0 {
            control.refuse_taken_hosts(&caller, &app, None)?;
        }
        refuse_other_kind("secret", &app, names.iter().filter(|name| is_secret(&record, name)))?;
        let mut unset = request.changes.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name);
        if let Some(name) = unset.find(|name| !record.config.contains_key(*name)) {
            return Err(ErrorBody::new(Code::NotFound, format!("{name} is not set for app {app}"))
                .hint("`rung config get` lists what is set; nothing was changed")
                .into());
        }
        for (name, value) in &request.changes {
            match value {
                Some(value) => record.config.insert(name.clone(), value.clone()),
                None => record.config.remove(name),
            };
        }
        let size: usize = record.config.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > CONFIG_MAX_BYTES {
            let message = format!("config of app {app} would be {size} bytes; {CONFIG_MAX_BYTES} at most");
            return Err(ErrorBody::new(Code::TooLarge, message).hint("keep large data in a volume").into());
        }
        let reason = format!("config: {}", names.join(", "));
        if let Some(started) = control
            .begin_with(record, revision, Vec::new(), DeploymentKind::Config, reason, &request.by)
            .await?
        {
            return Ok(Json(started));
        }
    }
    Err(contended(&format!("config of app {app}")).into())
}

fn is_secret(record: &App, name: &str) -> bool {
    SecretName::new(name).is_ok_and(|name| record.secrets.contains_key(&name))
}

/// A name is a setting or a secret: as both, one would win without a word.
fn refuse_other_kind<'n>(
    kind: &str,
    app: &AppName,
    mut clashing: impl Iterator<Item = &'n &'n str>,
) -> Result<(), ErrorBody> {
    match clashing.next() {
        None => Ok(()),
        Some(name) => {
            let message = format!("{name} is a {kind} of app {app} already");
            Err(ErrorBody::new(Code::Refused, message)
                .hint(format!("take it away there first: rung {kind} unset {name} --app {app}")))
        }
    }
}

fn check_name(name: &str) -> Result<(), ErrorBody> {
    given::check_name(name)?;
    if appfile::is_reserved(name) {
        let message = format!("{name} is given by Rung itself and can't be set");
        return Err(ErrorBody::new(Code::InvalidRequest, message));
    }
    Ok(())
}

pub async fn list_secrets(State(control): State<Control>, named: Named) -> Answer<Vec<SecretListing>> {
    let app: AppName = named.get("app")?;
    let record = control.read(|world| Some(world.apps.get(&app)?.value.clone()));
    let record = record.ok_or_else(|| no_such_app(&app))?;
    let required = control.current_file(&record).map(|file| file.required_secrets).unwrap_or_default();
    let mut kept = control.secret_versions(&app).await?;
    let mut versions: BTreeMap<SecretName, u64> = record.secrets;
    // What is required and not set is listed, too, with no version.
    for name in &required {
        versions.entry(name.clone()).or_insert(0);
    }
    let listed = versions.into_iter().map(|(name, version)| {
        let required = required.contains(&name);
        let versions = kept.remove(&name).unwrap_or_default();
        SecretListing { name, version, required, versions }
    });
    Ok(Json(listed.collect()))
}

pub async fn set_secrets(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Private(request): Private<SecretRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    Ok(Json(control.change_secrets(&caller, &app, &request, Existing::Replace).await?))
}

pub async fn generate_secret(
    State(control): State<Control>,
    caller: Caller,
    named: Named,
    Body(request): Body<GenerateRequest>,
) -> Answer<Started> {
    let app: AppName = named.get("app")?;
    let GenerateRequest { name, length, .. } = &request;
    if !(GENERATED_MIN..=GENERATED_MAX).contains(length) {
        let message = format!("secret {name} can't be generated with {length} characters");
        return Err(ErrorBody::new(Code::InvalidRequest, message)
            .hint(format!("say {GENERATED_MIN} to {GENERATED_MAX}"))
            .into());
    }
    let value = secrets::generate(*length, request.alphabet);
    let changes = BTreeMap::from([(name.clone(), Some(value))]);
    let changed = SecretRequest { changes, by: request.by.clone() };
    Ok(Json(control.change_secrets(&caller, &app, &changed, request.existing).await?))
}

pub async fn rotate_key(State(control): State<Control>, caller: Caller) -> Answer<KeyRotated> {
    let rotated = control.rotate_key().await?;
    caller.note(format!("{} values wrapped anew", rotated.wrapped));
    let message =
        format!("the master key was replaced by {}: {} values", caller.who().name(), rotated.wrapped);
    control.record(None, "secrets", message);
    Ok(Json(rotated))
}

impl Control {
    async fn change_secrets(
        &self,
        caller: &Caller,
        app: &AppName,
        request: &SecretRequest,
        existing: Existing,
    ) -> Result<Started, ErrorBody> {
        let names: Vec<&str> = request.changes.keys().map(|name| name.as_str()).collect();
        names.iter().try_for_each(|name| check_name(name))?;
        caller.note(names.join(", "));
        let _turn = self.turn_of(app).await?;
        let _sealing = self.inner.keys.sealing().await;
        for _ in 0..ATTEMPTS {
            let (mut record, revision) = self.record_or_new(app)?;
            if revision == 0 {
                self.refuse_taken_hosts(caller, app, None)?;
            }
            if existing == Existing::Keep {
                refuse_set_already(&record, request)?;
            }
            let set = request.changes.iter().filter(|(_, value)| value.is_some());
            let clashing: Vec<&str> =
                set.map(|(name, _)| name.as_str()).filter(|name| record.config.contains_key(*name)).collect();
            refuse_other_kind("config", app, clashing.iter())?;
            self.refuse_required(&record, request)?;
            let sealed = self.seal_changes(&mut record, request).await?;
            let reason = format!("secrets: {}", names.join(", "));
            let begun = self
                .begin_with(record, revision, sealed, DeploymentKind::Secret, reason, &request.by)
                .await?;
            if let Some(started) = begun {
                return Ok(started);
            }
        }
        Err(contended(&format!("secrets of app {app}")))
    }
}

impl Control {
    /// What a deploy would be refused for is not brought about by taking a secret away.
    fn refuse_required(&self, record: &App, request: &SecretRequest) -> Result<(), ErrorBody> {
        let app = &record.name;
        let taken = |name: &SecretName| request.changes.get(name).is_some_and(Option::is_none);
        let required = self.read(|world| {
            let file = &world.release(app, record.current?)?.file;
            let signing = file.notify.as_ref().and_then(|notify| notify.secret.as_ref());
            file.required_secrets.iter().chain(signing).find(|name| taken(name)).cloned()
        });
        let Some(name) = required else { return Ok(()) };
        let message = format!("the app file of {app} requires secret {name}");
        Err(ErrorBody::new(Code::Refused, message)
            .hint("nothing was changed; deploy an app file that does not name it, then unset it"))
    }
}

fn refuse_set_already(record: &App, request: &SecretRequest) -> Result<(), ErrorBody> {
    let set = request.changes.keys().find_map(|name| Some((name, record.secrets.get(name)?)));
    let Some((name, version)) = set else { return Ok(()) };
    let message = format!("secret {name} of app {} is set already (version {version})", record.name);
    Err(ErrorBody::new(Code::Refused, message).hint(
        "nothing was changed; --replace generates another value, and instances are replaced one by one",
    ))
}

impl Control {
    /// Gives each changed secret its next version in the record; answers the sealed values as store operations.
    ///
    /// The version counts up over all that were ever set, so an old release never opens a newer value; also over those
    /// whose record was not written, so that nobody's value takes the place of another one's that is about to be named.
    async fn seal_changes(
        &self,
        record: &mut App,
        request: &SecretRequest,
    ) -> Result<Vec<(String, Vec<u8>)>, ErrorBody> {
        let mut sealed = Vec::new();
        for (name, value) in &request.changes {
            let Some(value) = value else {
                if record.secrets.remove(name).is_none() {
                    let message = format!("app {} has no secret {name}", record.name);
                    return Err(
                        ErrorBody::new(Code::NotFound, message).hint("`rung secret list` shows the names")
                    );
                }
                continue;
            };
            secrets::check_value(name, value)?;
            let mut version = self.highest_version(record, name) + 1;
            while self.is_sealed(&record.name, name, version).await? {
                version += 1;
            }
            let context = secrets::seal_context(&record.name, name, version);
            let origin = Origin { at: Some(Timestamp::now()), by: Some(request.by.clone()) };
            let bytes = self.inner.keys.seal(&context, value.as_bytes(), origin);
            sealed.push((keys::secret(&record.name, name, version), bytes));
            record.secrets.insert(name.clone(), version);
        }
        Ok(sealed)
    }

    async fn is_sealed(&self, app: &AppName, name: &SecretName, version: u64) -> Result<bool, ErrorBody> {
        let read = self.inner.store.get(&keys::secret(app, name, version)).await;
        Ok(read.map_err(|error| store_error(&error))?.value.is_some())
    }

    fn highest_version(&self, record: &App, name: &SecretName) -> u64 {
        let in_releases = self.read(|world| {
            let releases = world.releases.get(&record.name).into_iter().flat_map(|of_app| of_app.values());
            releases.filter_map(|held| held.value.secrets.get(name).copied()).max()
        });
        record.secrets.get(name).copied().max(in_releases).unwrap_or(0)
    }

    /// Commits a changed record: as a deployment of the current artifact when there is one, else for later.
    async fn begin_with(
        &self,
        record: App,
        revision: u64,
        sealed: Vec<(String, Vec<u8>)>,
        kind: DeploymentKind,
        reason: String,
        by: &str,
    ) -> Result<Option<Started>, ErrorBody> {
        self.refuse_while_deploying(&record)?;
        // Sealed values first: a release must never name a version that is not there.
        for (key, value) in sealed {
            // Another server may have taken this version since.
            let guard = Guard::Absent { key: key.clone() };
            if let Committed::Conflict =
                self.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await?
            {
                return Ok(None);
            }
        }
        let current =
            record.current.and_then(|number| self.read(|world| world.release(&record.name, number).cloned()));
        let Some(current) = current else {
            return self.keep(&record, revision).await.map(|kept| kept.then_some(Started::Kept));
        };
        if current.config == record.config && current.secrets == record.secrets {
            return Ok(Some(Started::Unchanged { release: current.number }));
        }
        let draft = Draft {
            file: current.file,
            config: record.config.clone(),
            secrets: record.secrets.clone(),
            source: current.source,
            artifact: Some(current.artifact),
            reason,
            note: None,
            provenance: current.provenance,
        };
        let number = self.begin(record, revision, kind, Move::Make(Box::new(draft)), by).await?;
        Ok(number.map(|number| Started::Deployment { number, release: None, remarks: Vec::new() }))
    }

    async fn keep(&self, record: &App, revision: u64) -> Result<bool, ErrorBody> {
        let (guard, op) = self.replace_app(record, revision);
        if revision > 0 {
            return Ok(matches!(self.commit(vec![guard], vec![op]).await?, Committed::Done));
        }
        let guard = Guard::Absent { key: keys::app(&record.name) };
        let (mut guards, mut ops) = (vec![guard], vec![op]);
        // An app that begins with its settings has its name from then on.
        let claim = match self.claim_hosts(&record.name, None).await? {
            Claiming::Own => None,
            Claiming::Free(claim) => Some(claim),
            Claiming::Taken => return Ok(false),
        };
        if let Some(claim) = &claim {
            guards.push(claim.guard.clone());
            ops.push(claim.op.clone());
        }
        Ok(matches!(self.commit(guards, ops).await?, Committed::Done))
    }
}
