//! The audit log for people: its end, what is asked for, and whether it is whole. Records are passed on as the lines that
//! are on disk, so that whoever keeps them elsewhere can verify them there.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};

use super::{Admin, Role};
use crate::api::status;
use crate::audit::{self, Audit, AuditError, Cursor, Event, Filter, Follow, Link, Part, Picker, Report};
use crate::base::text::chain;
use crate::proto::admin as wire;

/// So many records from before are sent at most.
const MAX_LAST: usize = 10_000;
/// So often a search looks at more before it says that it goes on.
const READS_AT_ONCE: usize = 32;
/// How often verification begins anew when files are removed under it, as configured.
const ATTEMPTS: usize = 3;

type Records = Pin<Box<dyn Stream<Item = Result<wire::AuditRecords, Status>> + Send>>;

#[tonic::async_trait]
impl wire::audit_log_server::AuditLog for Admin {
    type TailStream = Records;
    type QueryStream = Records;

    async fn tail(&self, request: Request<wire::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        self.require(&request, Role::Viewer)?;
        let wire::TailRequest { last, once } = request.into_inner();
        let audit = self.parts.issuer.audit.clone();
        let last = usize::try_from(last).unwrap_or(usize::MAX).min(MAX_LAST);
        let follow = if once { None } else { audit.follow() };
        // After that: what is written from here on is either in the parts or followed.
        let parts = parts(&audit)?;
        let cursor = Cursor::at_the_end(&parts);
        let lines = blocking(move || audit::last_lines(&parts, last)).await?;
        let tail = Tail { audit, cursor, follow, lines };
        Ok(Response::new(Box::pin(try_unfold(tail, Tail::next))))
    }

    async fn query(&self, request: Request<wire::QueryAuditRequest>) -> Result<Response<Self::QueryStream>, Status> {
        self.require(&request, Role::Viewer)?;
        let request = request.into_inner();
        let left = if request.limit == 0 { u32::MAX } else { request.limit };
        let parts = parts(&self.parts.issuer.audit)?;
        let picker = Picker::new(filter(request)?);
        let query = Query { parts, cursor: Cursor::at_the_first(), picker, left };
        Ok(Response::new(Box::pin(try_unfold(query, Query::next))))
    }

    async fn verify(
        &self,
        request: Request<wire::VerifyAuditRequest>,
    ) -> Result<Response<wire::VerifyAuditResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let noted = match request.into_inner().noted.as_str() {
            "" => None,
            text => Some(Link::parse(text).ok_or_else(|| {
                status::bad_field("noted", format!("is `{text}`, not SEQ:HASH as `tether audit verify` prints it"))
            })?),
        };
        let audit = self.parts.issuer.audit.clone();
        let report = blocking(move || verify(&audit, noted.as_slice())).await?;
        let json = serde_json::to_string(&report).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::VerifyAuditResponse { ok: report.ok, json }))
    }
}

/// The end of the log, and what comes.
struct Tail {
    audit: Audit,
    cursor: Cursor,
    follow: Option<Follow>,
    lines: Vec<String>,
}

impl Tail {
    async fn next(mut self) -> Result<Option<(wire::AuditRecords, Self)>, Status> {
        loop {
            if !self.lines.is_empty() {
                let lines = std::mem::take(&mut self.lines);
                return Ok(Some((wire::AuditRecords { lines }, self)));
            }
            let Some(follow) = &mut self.follow else { return Ok(None) };
            let (parts, mut cursor) = (parts(&self.audit)?, self.cursor.clone());
            (self.lines, self.cursor) = blocking(move || Ok((cursor.read(&parts)?, cursor))).await?;
            if self.lines.is_empty() && !follow.more().await {
                return Ok(None);
            }
        }
    }
}

/// A search from the first record to the last there was when it began.
struct Query {
    parts: Vec<Part>,
    cursor: Cursor,
    picker: Picker,
    left: u32,
}

impl Query {
    async fn next(self) -> Result<Option<(wire::AuditRecords, Self)>, Status> {
        blocking(move || self.search()).await
    }

    fn search(mut self) -> Result<Option<(wire::AuditRecords, Self)>, AuditError> {
        for _ in 0..READS_AT_ONCE {
            let read = if self.left == 0 { Vec::new() } else { self.cursor.read(&self.parts)? };
            if read.is_empty() {
                return Ok(None);
            }
            let most = usize::try_from(self.left).unwrap_or(usize::MAX);
            let lines: Vec<String> = read.into_iter().filter(|line| self.picker.picks(line)).take(most).collect();
            if !lines.is_empty() {
                self.left = self.left.saturating_sub(u32::try_from(lines.len()).unwrap_or(u32::MAX));
                return Ok(Some((wire::AuditRecords { lines }, self)));
            }
        }
        Ok(Some((wire::AuditRecords::default(), self)))
    }
}

/// Holds what is kept against the chain. The head is read first: what it names was written before the files are looked at.
fn verify(audit: &Audit, noted: &[Link]) -> Result<Report, AuditError> {
    let head = audit.head().unwrap_or_default();
    let mut attempt = 1;
    loop {
        let expected = audit::expected(&head, noted)?;
        let report = audit::verify(&audit.parts().unwrap_or_default(), &expected);
        match report {
            Err(AuditError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            report => return report,
        }
    }
}

fn parts(audit: &Audit) -> Result<Vec<Part>, Status> {
    audit.parts().ok_or_else(|| Status::failed_precondition("this agent keeps no audit log"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AuditError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| Status::unavailable("the agent is stopping"))?;
    done.map_err(|error| Status::internal(chain(&error)))
}

fn filter(request: wire::QueryAuditRequest) -> Result<Filter, Status> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let known = |name: &str| Event::SCHEMA.iter().any(|schema| schema.event == name);
    if let Some(unknown) = request.events.iter().find(|name| !known(name)) {
        return Err(status::bad_field(
            "events",
            format!("has `{unknown}`, and there is no such event: see docs/audit.md"),
        ));
    }
    Ok(Filter {
        since: time("since", &request.since)?,
        until: time("until", &request.until)?,
        events: request.events,
        session: some(request.session),
        below: request.below,
        txn: some(request.txn),
        spiffe_id: some(request.spiffe_id),
        user: some(request.user),
    })
}

fn time(field: &str, text: &str) -> Result<Option<OffsetDateTime>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(Some)
        .map_err(|_| status::bad_field(field, format!("is `{text}`, not a time such as 2026-11-23T10:00:00Z")))
}
