//! `tether authority`: what signs.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proto::admin::{
    AuthorityView, RevokeAuthorityRequest, RotateAuthorityRequest, ShowAuthoritiesRequest, ShowAuthoritiesResponse,
};

use super::Context;
use super::args::AuthorityCommand;
use super::failure::Failure;
use super::output::relative;

pub(super) async fn run(command: AuthorityCommand, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let mut authorities = admin.authorities();
    let shown = match command {
        AuthorityCommand::Show => admin.answer(authorities.show(ShowAuthoritiesRequest {})).await?,
        AuthorityCommand::Rotate { kind, now } => {
            let request = RotateAuthorityRequest { kind: kind.as_str().to_owned(), now };
            admin.answer(authorities.rotate(request)).await?
        }
        AuthorityCommand::Revoke { id } => admin.answer(authorities.revoke(RevokeAuthorityRequest { id })).await?,
    };
    if context.output.is_json() {
        return context.json(&Document::from(&shown));
    }
    print(&shown, context)
}

#[derive(Serialize)]
struct Document<'a> {
    sequence: u64,
    authorities: Vec<AuthorityDocument<'a>>,
}

#[derive(Serialize)]
struct AuthorityDocument<'a> {
    id: &'a str,
    kind: &'a str,
    state: &'a str,
    not_before: &'a str,
    not_after: &'a str,
    activates_at: Option<&'a str>,
}

impl<'a> From<&'a ShowAuthoritiesResponse> for Document<'a> {
    fn from(shown: &'a ShowAuthoritiesResponse) -> Self {
        let authority = |view: &'a AuthorityView| AuthorityDocument {
            id: &view.id,
            kind: &view.kind,
            state: &view.state,
            not_before: &view.not_before,
            not_after: &view.not_after,
            activates_at: Some(view.activates_at.as_str()).filter(|at| !at.is_empty()),
        };
        Self { sequence: shown.sequence, authorities: shown.authorities.iter().map(authority).collect() }
    }
}

fn print(shown: &ShowAuthoritiesResponse, context: &mut Context) -> Result<(), Failure> {
    let now = context.host.now();
    let end = |text: &str| match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(at) => format!("{text} ({})", relative(at, now)),
        Err(_) => text.to_owned(),
    };
    let row = |view: &AuthorityView| {
        let state = match view.activates_at.as_str() {
            "" => view.state.clone(),
            at => format!("{} (signs from {at})", view.state),
        };
        vec![view.id.clone(), view.kind.clone(), state, end(&view.not_after)]
    };
    let rows: Vec<_> = shown.authorities.iter().map(row).collect();
    Ok(context.output.table(&["ID", "KIND", "STATE", "VALID UNTIL"], &rows)?)
}
