//! `rung certificate`.

use anyhow::Context as _;
use rung_api::wire::certificates::{AccountRequest, Terms};

use super::Session;
use crate::args::{CertificateCommand, CertificateEnableArgs};
use crate::edge::Exit;
use crate::person;
use crate::render;

pub async fn certificate(session: &mut Session<'_>, command: CertificateCommand) -> anyhow::Result<Exit> {
    match command {
        CertificateCommand::List => {
            let report = session.client.certificates().await.context("listing the certificates")?;
            session.screen.show(&report, render::certificates::render)?;
        }
        CertificateCommand::Enable(args) => enable(session, args).await?,
        CertificateCommand::Disable => {
            let forgotten = session.client.forget_certificate_account().await;
            forgotten.context("ending the ordering of certificates")?;
            session.screen.show(&serde_json::json!({ "ordering": false }), |_, _, _| {
                "certificates are ordered no more; those there are go on to their end".to_owned()
            })?;
        }
        CertificateCommand::Renew { domain } => {
            let context = || format!("ordering a certificate for {domain}");
            session.client.renew_domain(&domain).await.with_context(context)?;
            session.screen.show(&serde_json::json!({ "domain": domain, "ordered": true }), |_, _, _| {
                format!(
                    "a certificate for {domain} is being ordered; `rung certificate list` shows how it went"
                )
            })?;
        }
    }
    Ok(Exit::Done)
}

async fn enable(session: &mut Session<'_>, args: CertificateEnableArgs) -> anyhow::Result<()> {
    let trust = args
        .trust
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display())));
    let request = AccountRequest {
        email: args.email,
        directory: args.directory,
        trust: trust.transpose()?,
        terms: if args.agree_to_terms { Terms::Agreed } else { Terms::NotAgreed },
        by: person::name(),
    };
    session.client.set_certificate_account(&request).await.context("having certificates ordered")?;
    let report = session.client.certificates().await.context("listing the certificates")?;
    session.screen.show(&report, |report, paint, clock| {
        let ordered = "certificates are ordered for the domains of every app, and renewed in time";
        format!("{ordered}\n{}", render::certificates::render(report, paint, clock))
    })?;
    Ok(())
}
