//! What policy says, to whoever may look.

use std::path::Path;

use tonic::{Request, Response, Status};

use super::{Admin, Role};
use crate::api::status;
use crate::base::files::aside;
use crate::policy::{explain, read_cases};
use crate::proto::admin as wire;

/// The longest case in bytes.
const MAX_CASE_BYTES: usize = 64 << 10;

#[tonic::async_trait]
impl wire::policies_server::Policies for Admin {
    async fn show(
        &self,
        request: Request<wire::ShowPoliciesRequest>,
    ) -> Result<Response<wire::ShowPoliciesResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let set = self.parts.issuer.policy.set();
        let policies = set.policies().iter().map(|rule| wire::PolicyView {
            id: rule.id().to_owned(),
            origin: rule.origin().to_string(),
            text: rule.text().to_owned(),
        });
        let policies = policies.collect();
        Ok(Response::new(wire::ShowPoliciesResponse { digest: set.digest().to_owned(), policies }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainPolicyRequest>,
    ) -> Result<Response<wire::ExplainPolicyResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let text = request.into_inner().case;
        if text.len() > MAX_CASE_BYTES {
            return Err(status::bad_field("case", format!("has more than {MAX_CASE_BYTES} bytes")));
        }
        let cases = read_cases(Path::new(""), &text).map_err(|mistakes| {
            let mistakes: Vec<_> = mistakes.iter().map(|mistake| mistake.to_string().trim().to_owned()).collect();
            status::bad_field("case", mistakes.join("; "))
        })?;
        let [case] = <[_; 1]>::try_from(cases)
            .map_err(|cases| status::bad_field("case", format!("has {} cases: give one", cases.len())))?;
        let (set, now) = (self.parts.issuer.policy.set(), self.parts.issuer.clock.now());
        let explanation = aside(move || case.ask(now, |question| explain(&set, question))).await;
        let json = serde_json::to_string(&explanation).map_err(|error| Status::internal(format!("BUG: {error}")))?;
        Ok(Response::new(wire::ExplainPolicyResponse { json }))
    }
}
